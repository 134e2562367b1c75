"""The buffer's index: a first-in-first-out ring of items with exact sampling weights. Holds no payload."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from buffer.config import BufferConfig
from buffer.sum_tree import SumTree


@dataclass(frozen=True)
class Drawn:
    """One batch, by slot."""

    slots: np.ndarray
    """int64 [batch]: key % capacity."""
    keys: np.ndarray
    """int64 [batch]: item key, the number of the pair in order of insertion."""
    draw_counts: np.ndarray
    """int32 [batch]: times drawn before this draw."""
    ages: np.ndarray
    """int64 [batch]: pairs inserted after this one."""
    staleness: np.ndarray
    """int64 [batch]: optimizer steps that the weights behind the pair were old when it was inserted."""


@dataclass(frozen=True)
class IndexState:
    """What a restored index needs; arrays of one entry per slot, [capacity]. Draws need no generator state: each has a
    generator of its own, a function of the seed and the draw's number."""

    next_key: int
    draws: int
    draw_counts: np.ndarray
    """int32"""
    versions: np.ndarray
    """int64"""
    staleness: np.ndarray
    """int64"""
    present: np.ndarray
    """bool: the slot holds an entry."""

    @property
    def capacity(self) -> int:
        return len(self.present)


class ReplayIndex:
    """The entry with key k lives in slot k % capacity; inserting entry k + capacity evicts it.

    Invariants: ``size`` slots have positive weight; the weight of an entry depends on its draw count alone
    (``inverse_count``: 1 / (draws + 1); ``uniform`` and ``recent``: 1); draw d is a function of (seed, d, entries), so
    that it is the same however the payloads are spread.
    """

    def __init__(self, config: BufferConfig, seed: int) -> None:
        self._config, self._seed, self.capacity = config, seed, config.capacity
        self._tree = SumTree(self.capacity)
        self._draw_counts = np.zeros(self.capacity, np.int32)
        self._versions = np.zeros(self.capacity, np.int64)
        self._staleness = np.zeros(self.capacity, np.int64)
        self._present = np.zeros(self.capacity, bool)
        self.next_key = 0
        """Also the number of pairs ever inserted."""
        self.draws = 0
        self.size = 0

    @property
    def evicted(self) -> int:
        return self.next_key - self.size

    def insert(self, version: int, staleness: int) -> int:
        """Take in an entry; returns its key. The entry ``capacity`` keys older is evicted; one that is too stale from
        the start leaves at once."""
        key = self.next_key
        slot = key % self.capacity
        if self._present[slot]:
            self._evict(slot)
        self._present[slot] = True
        self._draw_counts[slot] = 0
        self._versions[slot] = version
        self._staleness[slot] = staleness
        self._tree[slot] = 1.0
        self.size += 1
        self.next_key += 1
        if self._config.max_age and staleness > self._config.max_age:
            self._evict(slot)
        return key

    def expire(self, step: int) -> None:
        """Evict entries whose weights are more than ``max_age`` steps older than ``step``."""
        if self._config.max_age:
            # One pass over all slots per optimizer step: a millisecond for a million.
            for slot in np.flatnonzero(self._present & (self._versions < step - self._config.max_age)).tolist():
                self._evict(slot)

    def draw(self, count: int) -> Drawn:
        """Draw ``count`` different entries one after the other, each in proportion to its weight.

        Raises:
            ValueError: fewer than ``count`` entries are in the buffer.
        """
        if count > self.size:
            raise ValueError(f"a draw of {count} from a buffer of {self.size} pairs")
        slots = self._newest(count) if self._config.sampler == "recent" else self._weighted(count)
        keys = self._key_of(slots)
        before = self._draw_counts[slots]
        self._draw_counts[slots] = before + 1
        self._tree.put(slots, self._weights(before + 1))
        if self._config.max_draws:
            for slot in slots[before + 1 >= self._config.max_draws].tolist():
                self._evict(slot)
        self.draws += 1
        return Drawn(slots, keys, before, self.next_key - 1 - keys, self._staleness[slots])

    def holds(self, key: int) -> bool:
        return bool(self.next_key - self.capacity <= key < self.next_key and self._present[key % self.capacity])

    def state(self) -> IndexState:
        """A copy that later changes do not touch."""
        return IndexState(
            next_key=self.next_key,
            draws=self.draws,
            draw_counts=self._draw_counts.copy(),
            versions=self._versions.copy(),
            staleness=self._staleness.copy(),
            present=self._present.copy(),
        )

    def restore(self, state: IndexState) -> None:
        """Be what ``state`` was taken from.

        Raises:
            ValueError: it was taken from a buffer of another capacity.
        """
        if state.capacity != self.capacity:
            raise ValueError(f"the state of a buffer of capacity {state.capacity} for one of {self.capacity}")
        self.next_key, self.draws, self.size = state.next_key, state.draws, int(np.count_nonzero(state.present))
        self._draw_counts, self._versions = state.draw_counts.copy(), state.versions.copy()
        self._staleness, self._present = state.staleness.copy(), state.present.copy()
        weights = np.where(self._present, self._weights(self._draw_counts), 0.0)
        self._tree.put(np.arange(self.capacity), weights)

    def _weights(self, draw_counts: np.ndarray) -> np.ndarray:
        """float64 [entries]"""
        if self._config.sampler == "inverse_count":
            return 1.0 / (draw_counts + 1.0)
        return np.ones(len(draw_counts))

    def _weighted(self, count: int) -> np.ndarray:
        # A generator of its own for each draw: a draw needs no state but its number. The plan uses streams 0 to 2.
        bits = np.random.Philox(key=[self._seed & 0xFFFFFFFFFFFFFFFF, self.draws], counter=[0, 0, 0, 3])
        uniform = np.random.Generator(bits)
        drawn = np.empty(0, np.int64)
        # Drawing with replacement and passing over repetitions is drawing without: what was drawn before does not
        # change the proportions of the rest.
        while True:
            found = self._tree.find(uniform.random(count - len(drawn)) * self._tree.total)
            _, firsts = np.unique(found, return_index=True)
            fresh = found[np.sort(firsts)]
            drawn = np.concatenate((drawn, fresh))
            if len(drawn) == count:
                return drawn
            self._tree.put(fresh, np.zeros(len(fresh)))  # the caller sets the new weights

    def _newest(self, count: int) -> np.ndarray:
        # All weights are 1, so a running sum is a number of entries; slots below the next key's are the newest.
        newer = self._tree.below(self.next_key % self.capacity)
        places = (newer - 1 - np.arange(count, dtype=np.float64)) % self.size
        return self._tree.find(places + 0.5)

    def _key_of(self, slots: np.ndarray) -> np.ndarray:
        newest = self.next_key - 1
        return newest - (newest - slots) % self.capacity

    def _evict(self, slot: int) -> None:
        self._present[slot] = False
        self._tree[slot] = 0.0
        self.size -= 1
