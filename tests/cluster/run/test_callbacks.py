"""What hangs on a run's moments: it sees each of them, and never ends a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.sections import LoggingConfig
from cluster.run.callbacks import BottleneckReport, Callback, Callbacks, SamplesReport, StepResult, is_due
from cluster.sources.base import Batch, SourceTimings
from contracts.pair import supervised


class Remembering(Callback):
    def __init__(self, moments: list[str], broken: str = "") -> None:
        self._moments, self._broken = moments, broken

    def on_step(self, result: StepResult) -> None:
        self._take("step", result.step)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._take("checkpoint", step)

    def on_end(self, step: int) -> None:
        self._take("end", step)

    def _take(self, moment: str, step: int) -> None:
        if moment == self._broken:
            raise OSError("the disk is full")
        self._moments.append(f"{moment} {step}")


def result(step: int, **metrics: float) -> StepResult:
    return StepResult(step, Batch([]), {"time/train_s": 1.0} | metrics)


def test_a_callback_that_fails_is_dropped_with_one_line_and_the_others_go_on(caplog):
    sound: list[str] = []
    broken: list[str] = []
    callbacks = Callbacks([Remembering(broken, broken="checkpoint"), Remembering(sound)], logging.getLogger("run"))
    callbacks.on_step(result(1))
    callbacks.on_checkpoint(1, Path("x"))
    callbacks.on_step(result(2))
    callbacks.on_end(2)
    assert sound == ["step 1", "checkpoint 1", "step 2", "end 2"]
    assert broken == ["step 1"]
    assert [record.getMessage() for record in caplog.records] == ["Remembering failed and is dropped: the disk is full"]


class Source:
    """Timings as the test sets them."""

    timing = SourceTimings()

    def timings(self) -> SourceTimings:
        return self.timing

    def samples(self, batch: Batch) -> list[Any]:
        return batch.pairs


def test_the_bottleneck_report_leaves_out_the_start_and_comes_when_it_is_due(caplog):
    caplog.set_level(logging.INFO)
    source: Any = Source()
    now = 0.0
    report = BottleneckReport(source, logging.getLogger("run"), lockstep=False, every=2, clock=lambda: now)
    now, source.timing = 100.0, SourceTimings(draw_wait_s=99.0, actors_idle_s=(0.0,))
    report.on_step(result(1))
    now, source.timing = 110.0, SourceTimings(draw_wait_s=104.0, actors_idle_s=(0.0,))
    report.on_step(result(2))
    report.on_end(2)
    assert report.closing == "learner idle 50%, actors idle 0%: generation-bound; 1 more actor(s) would balance"
    assert [record.getMessage() for record in caplog.records] == [report.closing] * 2


def test_a_run_without_actors_says_only_at_the_end_how_busy_it_was(caplog):
    caplog.set_level(logging.INFO)
    source: Any = Source()
    now = 0.0
    report = BottleneckReport(source, logging.getLogger("run"), lockstep=True, every=1, clock=lambda: now)
    for step, seconds in ((1, 10.0), (2, 12.0), (3, 14.0)):
        now = seconds
        report.on_step(result(step))
    report.on_end(3)
    assert [record.getMessage() for record in caplog.records] == ["learner busy 50% of the time"]


def test_samples_are_written_every_so_many_steps_and_no_more_than_asked_for():
    written: list[dict[str, Any]] = []

    class Lines:
        def write(self, record: dict[str, Any]) -> None:
            written.append(record)

    lines: Any = Lines()
    source: Any = Source()
    report = SamplesReport(
        lines, source, lambda ids: " ".join(map(str, ids)), LoggingConfig(samples_every=2, samples=2)
    )
    pairs = [supervised(i, np.array([1], np.int32), np.array([i], np.int32)) for i in range(3)]
    for step in (1, 2):
        report.on_step(StepResult(step, Batch(pairs), {}, [0.5, None, 1.0]))
    assert [(record["step"], record["row"], record["margin"]) for record in written] == [(2, 0, 0.5), (2, 1, None)]


def test_zero_is_never():
    assert [step for step in range(1, 7) if is_due(step, 3)] == [3, 6]
    assert not any(is_due(step, 0) for step in range(1, 7))
