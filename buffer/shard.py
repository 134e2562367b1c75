"""One shard of the buffer: the payloads of its slots, in memory and in snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from buffer.codec import decode, encode
from contracts.pair import ReferenceScore

LONGEST_RUN = 32
"""Slots in a run; fewer where a shard holds fewer."""


@dataclass(frozen=True)
class Layout:
    """Which shard holds which slot: runs of neighbouring slots in turn.

    Slots are filled one after the other, so pairs that come in together mostly go to one shard: an insert is one or
    two messages whatever the number of shards.
    """

    shards: int
    run: int

    @classmethod
    def of(cls, capacity: int, shards: int) -> Layout:
        return cls(shards, min(LONGEST_RUN, capacity // shards))

    def shard(self, slot: int) -> int:
        return slot // self.run % self.shards


class Shard:
    """Payloads by slot; a plain class of which ``ReplayBuffer.start`` makes a Ray actor.

    Only the front calls it, so it sees one order of events.
    """

    def __init__(self) -> None:
        self._pairs: dict[int, bytes] = {}

    def insert(self, slots: list[int], pairs: list[bytes]) -> None:
        self._pairs.update(zip(slots, pairs, strict=True))

    def get(self, slots: list[int]) -> list[bytes]:
        return [self._pairs[slot] for slot in slots]

    def annotate(self, slots: list[int], scores: list[ReferenceScore]) -> None:
        for slot, score in zip(slots, scores, strict=True):
            self._pairs[slot] = encode(decode(self._pairs[slot]).with_reference(score))

    def save(self, path: str) -> None:
        """Write slots int64 [pairs], lengths in bytes int64 [pairs], and the payloads one after the other."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            np.save(file, np.fromiter(self._pairs, np.int64, len(self._pairs)))
            np.save(file, np.fromiter(map(len, self._pairs.values()), np.int64, len(self._pairs)))
            file.writelines(self._pairs.values())

    def load(self, paths: list[str], number: int, layout: Layout) -> None:
        """Hold the slots of shard ``number`` that the saved shards ``paths`` have among them."""
        self._pairs = {}
        for path in paths:
            with open(path, "rb") as file:
                slots, lengths = np.load(file).tolist(), np.load(file).tolist()
                for slot, length in zip(slots, lengths, strict=True):
                    if layout.shard(slot) == number:
                        self._pairs[slot] = file.read(length)
                    else:
                        file.seek(length, 1)

    def held(self) -> tuple[int, int]:
        """Pairs, bytes of their payloads."""
        return len(self._pairs), sum(map(len, self._pairs.values()))
