"""Which shard holds which slot."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_RUN = 32
"""Slots in a run; fewer where a shard holds fewer."""


@dataclass(frozen=True)
class SlotLayout:
    """Runs of neighbouring slots go to the shards in turn.

    Slots are filled one after the other, so pairs that come in together mostly go to one shard: an insert is one or
    two messages whatever the number of shards.
    """

    shards: int
    run: int
    """Slots in a run."""

    @classmethod
    def of(cls, capacity: int, shards: int) -> SlotLayout:
        return cls(shards, min(LONGEST_RUN, capacity // shards))

    def shard(self, slot: int) -> int:
        return slot // self.run % self.shards
