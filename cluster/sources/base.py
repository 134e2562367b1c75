"""Batches for the learner: given rows in epoch order, or pairs that the actors write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from actors.plan import Plan
from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from contracts.pair import PreferencePair, ReferenceScore, given_pair, supervised


@dataclass(frozen=True)
class Batch:
    """One global batch and what is known of how it came about."""

    pairs: list[PreferencePair]
    tickets: np.ndarray | None = None
    """int64 [pairs]: where the buffer keeps them; None for given rows."""
    metrics: dict[str, float] = field(default_factory=dict)


class BatchSource(Protocol):
    """Where batches come from."""

    def begin(self, step: int, total_steps: int) -> None:
        """``step`` optimizer steps are done, from a checkpoint; the first batch is asked for next."""

    def next(self, step: int) -> Batch:
        """The batch of optimizer step ``step`` (from 0)."""

    def stepped(self, step: int, batch: Batch, scores: list[ReferenceScore | None]) -> dict[str, float]:
        """The learner has completed ``step`` steps, the last on ``batch``; returns metrics."""

    def snapshot(self, folder: Path) -> None:
        """Write what a resumed run needs to ``folder``, beside the learner's part."""

    def restore(self, folder: Path) -> None:
        """Continue from ``snapshot``."""


class WithoutState:
    """What sources do not need whose batch is a function of the step."""

    def begin(self, step: int, total_steps: int) -> None:
        pass

    def snapshot(self, folder: Path) -> None:
        pass

    def restore(self, folder: Path) -> None:
        pass


class WithScores(WithoutState):
    """A pair that comes again brings its reference score along, as it would from the buffer."""

    def __init__(self) -> None:
        self._scores: dict[int, ReferenceScore] = {}

    def stepped(self, step: int, batch: Batch, scores: list[ReferenceScore | None]) -> dict[str, float]:
        self._scores |= {p.index: score for p, score in zip(batch.pairs, scores, strict=True) if score is not None}
        return {}

    def _with_score(self, pair: PreferencePair) -> PreferencePair:
        score = self._scores.get(pair.index)
        return pair.with_reference(score) if score else pair


class GivenRows(WithScores):
    """Rows of the dataset in a seeded order of their own every epoch (methods ``sft`` and ``offline``)."""

    def __init__(self, table: TokenTable, config: RunConfig) -> None:
        super().__init__()
        self._table = table
        self._plan = Plan(config.seed, table.response_lengths, None, 1)
        self._batch = config.learner.batch_size
        self._supervised = config.method == "sft"

    def next(self, step: int) -> Batch:
        first = step * self._batch
        pairs = [self._pair(self._plan.item(i).row) for i in range(first, first + self._batch)]
        return Batch(pairs, metrics={"epoch": (first + self._batch) / len(self._table)})

    def _pair(self, row: int) -> PreferencePair:
        prompt, response, rejected = self._table[row]
        if self._supervised:
            return supervised(row, prompt, response)
        assert rejected is not None
        return self._with_score(given_pair(row, prompt, response, rejected))


class RecordedPairs(WithScores):
    """Batches as they were recorded, the same for every run (method ``replay``)."""

    def __init__(self, batches: list[list[PreferencePair]]) -> None:
        super().__init__()
        self._batches = batches

    def next(self, step: int) -> Batch:
        return Batch([self._with_score(pair) for pair in self._batches[step]])
