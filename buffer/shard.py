"""One shard of the buffer: the payloads of its slots, in memory and in snapshots."""

from __future__ import annotations

from pathlib import Path

from buffer.codec import decode, encode
from buffer.messages import SlotPayloads, SlotScores
from buffer.slot_layout import SlotLayout
from buffer.snapshot import read_payloads, write_payloads
from contracts.background import in_background
from contracts.stacks import stacks

DISK_LANE = "disk"
"""Ray's concurrency group for waiting until a snapshot is on the disk."""


class Shard:
    """Payloads by slot; a plain class of which ``ReplayBuffer.start`` makes a Ray actor.

    Only the coordinator calls it, so it sees one order of events.
    """

    def __init__(self) -> None:
        self._payloads: dict[int, bytes] = {}

    def __repr__(self) -> str:
        """As Ray's dashboard and log prefixes name it."""
        return "replay buffer, shard"

    def insert(self, fresh: SlotPayloads) -> None:
        self._payloads.update(fresh.payloads)

    def get(self, slots: list[int]) -> SlotPayloads:
        return SlotPayloads({slot: self._payloads[slot] for slot in slots})

    def annotate(self, scored: SlotScores) -> None:
        for slot, score in scored.scores.items():
            self._payloads[slot] = encode(decode(self._payloads[slot]).with_reference(score))

    def save(self, path: Path) -> None:
        """Begin to write the payloads of now; ``written`` waits for it."""
        payloads = dict(self._payloads)  # their bytes never change
        self._writing = in_background(lambda: write_payloads(path, payloads), "snapshot")

    def written(self) -> None:
        """Wait until the snapshot is on the disk. Runs beside the other calls.

        Raises:
            OSError: it could not be written.
        """
        self._writing.result()

    def stacks(self) -> str:
        """What every thread of this shard is doing."""
        return stacks()

    def load(self, paths: list[Path], number: int, layout: SlotLayout) -> None:
        """Hold the slots of shard ``number`` that the saved shards ``paths`` have among them."""
        self._payloads = {}
        for path in paths:
            self._payloads.update(read_payloads(path, lambda slot: layout.shard(slot) == number))
