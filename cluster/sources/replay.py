"""Batches as they were recorded, the same for every run (method ``replay``)."""

from __future__ import annotations

from cluster.sources.base import Batch, FixedSource
from contracts.pair import PreferencePair


class ReplaySource(FixedSource):
    """Recorded batches, one a step."""

    def __init__(self, batches: list[list[PreferencePair]]) -> None:
        super().__init__()
        self._batches = batches

    def next(self, step: int) -> Batch:
        return Batch([self._with_score(pair) for pair in self._batches[step]])
