"""The sampling plan: which row, cut and sampling seed plan index i stands for, as a pure function."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

from actors.token_table import Share

ROUNDS = 6
"""Rounds of the Feistel permutation; four already pass for random (Luby and Rackoff, 1988)."""
BLOCK = 4096
"""Visits within which several datasets come in the proportion of their weights."""
MIX_KEYS = 1 << 40
"""Keys of permutations from here on belong to the mixing of datasets; those below are epochs."""
SHORT_MARGIN = 3
"""A response shorter than the segment and this many tokens is rewritten whole (the paper's code)."""


@dataclass(frozen=True)
class PlanItem:
    """One piece of work."""

    index: int
    row: int
    epoch: int
    start: int
    end: int
    """The cut [start, end) in tokens of the response."""
    sampling_seed: int
    """Seed of the engine's sampling, below 2**63."""


@dataclass(frozen=True)
class Plan:
    """plan(seed, i): the same in every process, without state.

    Index i is response i mod K of visit i // K; the visits of an epoch pass over all rows in an order of
    the epoch's own.
    The K responses of a visit share row and cut and differ in their sampling seed.
    """

    seed: int
    response_lengths: NDArray[np.int32] = field(repr=False)
    """int32 [rows], in tokens, each at least 1."""
    segment_length: int | None
    """N; None rewrites whole responses."""
    responses_per_prompt: int
    """K"""
    shares: tuple[Share, ...] = ()
    """Datasets that are drawn in proportion to their weights; () draws all rows alike."""

    def item(self, index: int) -> PlanItem:
        rows = len(self.response_lengths)
        visit = index // self.responses_per_prompt
        epoch = visit // rows
        if self.shares:
            row = mixed_row(visit, self.shares, self.seed)
        else:
            row = permuted(visit % rows, rows, (self.seed, epoch))
        cut_draw = _random_words((self.seed, visit), 1, stream=1)[0]
        start, end = cut(int(self.response_lengths[row]), self.segment_length, cut_draw)
        seed = _random_words((self.seed, index), 1, stream=2)[0] >> 1
        return PlanItem(index, row, epoch, start, end, seed)


def mixed_row(visit: int, shares: tuple[Share, ...], seed: int) -> int:
    """The row of a visit to datasets that are drawn in proportion to their weights.

    Each ``BLOCK`` of visits holds every share's quota of them, in a random order. The visits of one share pass over its
    rows again and again, in an order of each pass's own: no row comes twice before all have come once.
    """
    block, place = divmod(visit, BLOCK)
    quotas = _quotas(shares)
    place = permuted(place, BLOCK, (seed, MIX_KEYS + block))
    number = 0
    while place >= quotas[number]:
        place -= quotas[number]
        number += 1
    share = shares[number]
    past, at = divmod(block * quotas[number] + place, share.rows)
    return share.first + permuted(at, share.rows, (seed, MIX_KEYS * (2 + number) + past))


@lru_cache(maxsize=16)
def _quotas(shares: tuple[Share, ...]) -> tuple[int, ...]:
    """Visits of each share in a block: in proportion to the weights, at least one each, together ``BLOCK``."""
    total = sum(share.weight for share in shares)
    quotas = [max(1, int(share.weight / total * BLOCK)) for share in shares]
    quotas[max(range(len(quotas)), key=quotas.__getitem__)] += BLOCK - sum(quotas)
    return tuple(quotas)


def cut(response_length: int, segment_length: int | None, draw: int) -> tuple[int, int]:
    """[start, end) of the segment: uniform over the starts that leave room for a whole one.

    ``draw`` is a uniform 64-bit number. Short responses are cut at 0 and taken whole.
    """
    if segment_length is None or response_length < segment_length + SHORT_MARGIN:
        return 0, response_length
    # Multiply and shift maps 64 uniform bits to a range with a bias below 2**-40 for any response.
    start = draw * (response_length - segment_length + 1) >> 64
    return start, start + segment_length


def permuted(place: int, rows: int, key: tuple[int, int]) -> int:
    """Where ``place`` goes in a random permutation of range(rows) that needs no memory.

    A Feistel network permutes the next power of four; places that land outside are sent through again (cycle
    walking, Black and Rogaway, 2002), on average less than four times.
    """
    half_bits = max(1, ((rows - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    keys = _round_keys(key)
    while True:
        left, right = place >> half_bits, place & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        place = left << half_bits | right
        if place < rows:
            return place


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: 64 bits to 64 bits."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


@lru_cache(maxsize=16)
def _round_keys(key: tuple[int, int]) -> list[int]:
    return _random_words(key, ROUNDS, stream=0)


class _Key(ISeedSequence):
    """Gives Philox its key as a seed: given as a key, numpy asks the system for entropy first, to drop it."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        return np.array(self._key, np.uint64)


def _random_words(key: tuple[int, int], count: int, stream: int) -> list[int]:
    """``count`` uniform 64-bit numbers from the counter-based Philox generator: the key's own, whoever asks."""
    seed = _Key((key[0] & 0xFFFFFFFFFFFFFFFF, key[1]))
    bits = np.random.Philox(seed, counter=[0, 0, 0, stream])  # type: ignore[arg-type]  # the stub knows only subclasses
    return bits.random_raw(count).tolist()
