"""What hangs on the three moments of a run: a step was made, a checkpoint is whole, the run is at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from cluster.config.sections import LoggingConfig
from cluster.reports.bottleneck import Machine, Shares, bottleneck
from cluster.reports.hints import Hints
from cluster.reports.progress import ProgressLine
from cluster.reports.samples import Decode, readable
from cluster.reports.trackers import Trackers
from cluster.sources.base import Batch, BatchSource, Metrics
from cluster.storage.json_lines import JsonLines
from cluster.storage.recording import PairRecorder
from contracts.errors import first_line


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, done."""

    step: int
    """Steps done, this one included."""
    batch: Batch
    metrics: Metrics
    margins: Sequence[float | None] = ()
    """Reward margins, aligned with the batch; None where the objective has none."""


class Callback:
    """Overrides the moments that it is interested in."""

    def on_step(self, result: StepResult) -> None:
        """A step was made."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint is whole, in ``folder``."""

    def on_end(self, step: int) -> None:
        """The last step was made and its checkpoint is whole."""


class Callbacks:
    """Hands each moment to all callbacks, in order.

    One that fails is dropped with a line in the log: what hangs on a run never ends it.
    """

    def __init__(self, callbacks: Sequence[Callback], log: logging.Logger) -> None:
        self._callbacks, self._log = list(callbacks), log

    def on_step(self, result: StepResult) -> None:
        self._each(lambda callback: callback.on_step(result))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._each(lambda callback: callback.on_checkpoint(step, folder))

    def on_end(self, step: int) -> None:
        self._each(lambda callback: callback.on_end(step))

    def _each(self, moment: Callable[[Callback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                moment(callback)
            except Exception as error:
                self._callbacks.remove(callback)
                self._log.exception("%s failed and is dropped: %s", type(callback).__name__, first_line(error))


class MetricsReport(Callback):
    """Metrics to the trackers, and to the progress line."""

    def __init__(self, trackers: Trackers, progress: ProgressLine) -> None:
        self._trackers, self._progress = trackers, progress

    def on_step(self, result: StepResult) -> None:
        self._trackers.log(result.step, result.metrics)
        self._progress.show(result.step, result.metrics)


class HintsReport(Callback):
    """Plain words when the metrics show a known trouble."""

    def __init__(self, log: logging.Logger) -> None:
        self._hints = Hints(log.info)

    def on_step(self, result: StepResult) -> None:
        self._hints.observe(result.metrics)


class Recording(Callback):
    """Every drawn batch, for method ``replay``."""

    def __init__(self, recorder: PairRecorder) -> None:
        self._recorder = recorder

    def on_step(self, result: StepResult) -> None:
        self._recorder.write(result.step - 1, result.batch.pairs)


class SamplesReport(Callback):
    """A few readable pairs every so many steps."""

    def __init__(self, lines: JsonLines, source: BatchSource, decode: Decode, config: LoggingConfig) -> None:
        self._lines, self._source, self._decode, self._config = lines, source, decode, config

    def on_step(self, result: StepResult) -> None:
        if is_due(result.step, self._config.samples_every):
            pairs = self._source.samples(result.batch)[: self._config.samples]
            for pair, margin in zip_longest(pairs, result.margins[: len(pairs)]):
                self._lines.write(readable(pair, self._decode, result.step, margin))


class BottleneckReport(Callback):
    """Who waited for whom, in a sentence, every so many steps and at the end.

    The first step is left out: engines start and kernels are compiled, which is nobody's balance.
    """

    def __init__(
        self,
        source: BatchSource,
        log: logging.Logger,
        *,
        lockstep: bool,
        every: int,
        machine: Callable[[], Machine] = Machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``machine``: what there is left, and how busy it was since the last call."""
        self._source, self._log, self._lockstep, self._every, self._clock = source, log, lockstep, every, clock
        self._machine = machine
        self._started, self._busy_s, self._steps = clock(), 0.0, 0
        self._starting: Shares | None = None
        self.closing = ""
        """What was said at the end."""

    def on_step(self, result: StepResult) -> None:
        self._busy_s += result.metrics["time/train_s"]
        self._steps += 1
        if self._steps == 1:
            self._starting = self._shares()
            self._machine()
        elif is_due(result.step, self._every) and self._source.timings().actors_idle_s:
            self._log.info(self._sentence())

    def on_end(self, step: int) -> None:
        self.closing = self._sentence()
        self._log.info(self.closing)

    def _sentence(self) -> str:
        shares = self._shares()
        balance = shares - self._starting if self._starting and self._steps > 1 else shares
        return bottleneck(balance, self._machine(), lockstep=self._lockstep)

    def _shares(self) -> Shares:
        timings = self._source.timings()
        idle = timings.actors_idle_s
        return Shares(
            wall_s=self._clock() - self._started,
            learner_busy_s=self._busy_s,
            draw_wait_s=timings.draw_wait_s,
            weights_wait_s=timings.weights_wait_s,
            publish_s=timings.publish_s,
            actor_wait_s=sum(idle) / max(len(idle), 1),
            actors=len(idle),
        )


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 is never."""
    return bool(every) and step % every == 0
