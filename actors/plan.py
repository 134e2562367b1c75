"""The sampling plan: which row, cut and sampling seed plan index i stands for, as a pure function."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

from actors.token_table import DatasetShare

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
    shares: tuple[DatasetShare, ...] = ()
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


def mixed_row(visit: int, shares: tuple[DatasetShare, ...], seed: int) -> int:
    """The row of a visit to datasets that are drawn in proportion to their weights.

    Every ``BLOCK`` of visits has the same even pattern of datasets. The visits of one dataset pass over its rows again
    and again, in an order of each pass's own: no row comes twice before all have come once.
    """
    pattern = _pattern(tuple(share.weight for share in shares))
    block, place = divmod(visit, BLOCK)
    number = int(pattern.number[place])
    share = shares[number]
    past, at = divmod(block * int(pattern.quota[number]) + int(pattern.earlier[place]), share.rows)
    return share.first + permuted(at, share.rows, (seed, MIX_KEYS * (1 + number) + past))


@dataclass(frozen=True)
class _Pattern:
    """Which dataset each visit of a block is of."""

    quota: NDArray[np.int64]
    """int64 [datasets]: visits of each in a block, in proportion to the weights, at least one."""
    number: NDArray[np.int64]
    """int64 [BLOCK]: the visit's dataset."""
    earlier: NDArray[np.int64]
    """int64 [BLOCK]: visits of the same dataset before it in the block."""


@lru_cache(maxsize=16)
def _pattern(weights: tuple[float, ...]) -> _Pattern:
    quota = np.maximum(1, np.array(weights) / sum(weights) * BLOCK).astype(np.int64)
    quota[quota.argmax()] += BLOCK - quota.sum()
    number = np.repeat(np.arange(len(quota)), quota)
    earlier = np.concatenate([np.arange(count) for count in quota])
    order = np.argsort((earlier + 0.5) / quota[number], kind="stable")  # each dataset's visits evenly over the block
    return _Pattern(quota, number[order], earlier[order])


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
