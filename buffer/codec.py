"""A pair as bytes, as shards hold it: a fixed header, then the arrays as they lie in memory."""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from contracts.pair import REGIONS, PreferencePair, ReferenceScore, as_token_ids

HEADER = struct.Struct("<6IqqdqHBx")
"""Lengths of prompt, chosen, replacement; start, end; runs of versions; index, row, mean log-probability, version of
the reference, bytes of the actor's name, flags. A multiple of 4 bytes, so that the arrays behind it are aligned."""
SUFFIX_KEPT, ENDED, REFERENCED = 1, 2, 4


def encode(pair: PreferencePair) -> bytes:
    """Header, prompt, chosen, replacement, (length, version) of each run of equal versions, reference, actor."""
    lengths, values = _runs(pair.versions)
    actor = pair.actor.encode()
    reference = pair.reference
    flags = SUFFIX_KEPT * pair.suffix_kept + ENDED * pair.ended + REFERENCED * (reference is not None)
    parts = [
        HEADER.pack(
            len(pair.prompt),
            len(pair.chosen),
            len(pair.replacement),
            pair.start,
            pair.end,
            len(lengths),
            pair.index,
            pair.row,
            pair.mean_logprob,
            reference.version if reference else 0,
            len(actor),
            flags,
        ),
        *(as_token_ids(x).tobytes() for x in (pair.prompt, pair.chosen, pair.replacement, lengths, values)),
    ]
    if reference:
        if len(reference.logps) != len(REGIONS):
            raise ValueError(f"pair {pair.index}: {len(reference.logps)} reference scores for {len(REGIONS)} regions")
        parts.append(np.ascontiguousarray(reference.logps, np.float32).tobytes())
    return b"".join((*parts, actor))


def decode(payload: bytes) -> PreferencePair:
    """The pair again; its arrays are read-only views of ``payload``."""
    (
        prompt_tokens,
        chosen_tokens,
        replacement_tokens,
        start,
        end,
        runs,
        index,
        row,
        mean_logprob,
        version,
        actor_bytes,
        flags,
    ) = HEADER.unpack_from(payload)
    bounds = list(accumulate((prompt_tokens, chosen_tokens, replacement_tokens, runs, runs), initial=0))
    flat = np.frombuffer(payload, np.int32, bounds[-1], HEADER.size)
    prompt, chosen, replacement, lengths, values = (flat[a:b] for a, b in pairwise(bounds))
    reference = None
    if flags & REFERENCED:
        logps = np.frombuffer(payload, np.float32, len(REGIONS), HEADER.size + flat.nbytes)
        reference = ReferenceScore(version, logps)
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        start=start,
        end=end,
        replacement=replacement,
        suffix_kept=bool(flags & SUFFIX_KEPT),
        index=index,
        row=row,
        actor=payload[len(payload) - actor_bytes :].decode(),
        versions=np.repeat(values, lengths),
        mean_logprob=mean_logprob,
        ended=bool(flags & ENDED),
        reference=reference,
    )


def _runs(values: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Lengths and values of the runs of equal neighbours; one or two versions generate a segment."""
    if not len(values):
        return np.zeros(0, np.int64), values
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, len(values))
    return np.diff(ends, prepend=0), values[ends - 1]
