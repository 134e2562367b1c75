"""What the loop asks of the place where its batches come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.workers.ray_calls import Call
from contracts.pair import PreferencePair, ReferenceScore

Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """One global batch and what is known of how it came about."""

    pairs: list[PreferencePair]
    keys: NDArray[np.int64] | None = None
    """int64 [pairs]: item keys under which the buffer keeps them; None where there is no buffer."""
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class SourceTimings:
    """Seconds since the start of the run in which one side stood still for the other."""

    draw_wait_s: float = 0.0
    """The learner waited for pairs."""
    weights_wait_s: float = 0.0
    """The learner waited for actors to acknowledge weights (the staleness bound)."""
    publish_s: float = 0.0
    """The learner stood still while the EMA was gathered."""
    actors_idle_s: tuple[float, ...] = ()
    """Of each generating actor: it had nothing to generate. Empty where no actors run."""


class BatchSource(Protocol):
    """Where batches come from."""

    def prepare(self) -> None:
        """Before the learner sets up: make room for it where it shares GPUs."""

    def begin(self, step: int, total_steps: int) -> None:
        """``step`` optimizer steps are done, from a checkpoint; the first batch is asked for next."""

    def next(self, step: int) -> Batch | None:
        """The batch of optimizer step ``step`` (from 0); None: the run was asked to end while it was waited for."""

    def stepped(self, step: int, batch: Batch, scores: Sequence[ReferenceScore | None]) -> Metrics:
        """The learner has completed ``step`` steps, the last on ``batch``; returns metrics."""

    def samples(self, batch: Batch) -> list[PreferencePair]:
        """Pairs of a batch that a person may want to read; none where nothing was made."""

    def timings(self) -> SourceTimings:
        """Who waited for whom until now."""

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Begin to write what a resumed run needs to ``folder``, as it is now, beside the learner's part.

        Returns:
            What waits until it is written. It may be called in another thread.
        """

    def restore(self, folder: Path) -> None:
        """Continue from ``snapshot``."""

    def stacks(self) -> Mapping[str, Call]:
        """Who writes the snapshot, and calls that answer what each is doing."""


class FixedSource:
    """What sources share whose batch is a function of the step: no state but reference scores, which a pair that comes
    again brings along as it would from the buffer."""

    def __init__(self) -> None:
        self._scores: dict[int, ReferenceScore] = {}

    def prepare(self) -> None:
        """Nothing else runs."""

    def begin(self, step: int, total_steps: int) -> None:
        """Nothing is kept between batches."""

    def stepped(self, step: int, batch: Batch, scores: Sequence[ReferenceScore | None]) -> Metrics:
        self._scores |= {p.index: score for p, score in zip(batch.pairs, scores, strict=True) if score is not None}
        return {}

    def samples(self, batch: Batch) -> list[PreferencePair]:
        return batch.pairs

    def timings(self) -> SourceTimings:
        return SourceTimings()

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """The step says everything."""
        return lambda: None

    def restore(self, folder: Path) -> None:
        """The step says everything."""

    def stacks(self) -> Mapping[str, Call]:
        return {}

    def _with_score(self, pair: PreferencePair) -> PreferencePair:
        score = self._scores.get(pair.index)
        return pair.with_reference(score) if score else pair
