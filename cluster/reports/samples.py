"""Pairs as a person reads them, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cluster.reports.pair_quality import edit_fraction
from contracts.pair import PreferencePair, TokenIds

Decode = Callable[[TokenIds], str | list[str]]
"""From int32 token ids to text, as a tokenizer's ``decode``: of one sequence it gives one text."""


UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What decoding writes for bytes that are no character, or not yet: tokens of bytes end within characters."""


def readable(pair: PreferencePair, decode: Decode, step: int, margin: float | None = None) -> dict[str, Any]:
    """One pair, segments between ⟦ and ⟧.

    ``age``: optimizer steps that the weights behind the pair were old in the batch of ``step``; None for offline pairs.
    ``margin``: the pair's reward margin in that step.
    """

    a, segment, c = consecutive_texts((pair.prefix, pair.segment, pair.suffix), decode)
    kept = pair.suffix if pair.suffix_kept else pair.suffix[:0]
    before, replacement, after = consecutive_texts((pair.prefix, pair.replacement, kept), decode)
    return {
        "step": step,
        "index": pair.index,
        "row": pair.row,
        "version": pair.version,
        "age": step - 1 - pair.version if pair.version >= 0 else None,
        "actor": pair.actor,
        "cut": [pair.start, pair.end],
        "prompt": str(decode(pair.prompt)).lstrip(UNREADABLE),
        "chosen": f"{a}⟦{segment}⟧{c}",
        "rejected": f"{before}⟦{replacement}⟧{after}",
        "ended": pair.ended,
        "suffix_kept": pair.suffix_kept,
        "margin": None if margin is None else round(margin, 4),
        "edit_fraction": round(edit_fraction(pair), 4),
        "replacement_logprob": None if np.isnan(pair.mean_logprob) else round(pair.mean_logprob, 4),
    }


def consecutive_texts(parts: Sequence[TokenIds], decode: Decode) -> list[str]:
    """The texts of parts that follow each other; together they are the text of the whole.

    Decoded apart, parts would lose a space where one begins, and a character whose bytes lie in two of them: it
    belongs to the one that completes it. Bytes at the very end that are no whole character are left out.
    """
    texts: list[str] = []
    done = ""
    for end in range(1, len(parts) + 1):
        text = str(decode(np.concatenate(parts[:end]))).rstrip(UNREADABLE)
        if not text.startswith(done):  # this tokenizer writes what is before otherwise once more follows
            return [str(decode(part)) for part in parts]
        texts.append(text[len(done) :])
        done = text
    return texts
