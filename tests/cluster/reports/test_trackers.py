"""Metrics reach every tracker, and one that fails does not end a run."""

from __future__ import annotations

import json
import logging
import resource
import signal
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.reports.trackers import Figures, JsonLinesTracker, TensorBoardTracker, Trackers
from cluster.storage.json_lines import JsonLines


class Broken:
    def __init__(self, *, closing: bool = False) -> None:
        self._closing = closing

    def log(self, step: int, figures: Figures) -> None:
        if not self._closing:
            raise ConnectionError("the service is gone")

    def close(self) -> None:
        raise ConnectionError("the service is gone")


def test_a_tracker_that_fails_is_dropped_with_one_line_and_the_others_go_on(tmp_path: Path, caplog):
    sound = JsonLinesTracker(JsonLines(tmp_path / "metrics.jsonl"))
    trackers = Trackers([Broken(), sound, Broken(closing=True)], logging.getLogger("run"))
    for step in (1, 2):
        trackers.log(step, {"loss": 0.5})
    trackers.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed and is dropped: the service is gone",
        "Broken could not be closed: the service is gone",
    ]


def test_what_is_not_finite_becomes_null(tmp_path: Path):
    trackers = Trackers([JsonLinesTracker(JsonLines(tmp_path / "m.jsonl"))], logging.getLogger("run"))
    trackers.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    trackers.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}


def test_tensorboard_reads_what_was_written(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2):
        tracker.log(step, {"loss": 0.5 * step, "lr": None})
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_tensorboard_shows_the_steps_of_a_later_attempt_in_place_of_what_came_after_its_start(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, loss in ((0, 1.0), (2, 5.0)):
        tracker = TensorBoardTracker(tmp_path, first_step)
        for step in range(first_step + 1, 5):
            tracker.log(step, {"loss": loss})
        tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 5), (4, 5)]


def test_tensorboard_loses_no_step_to_a_disk_that_is_full_for_a_while(tmp_path: Path, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))  # an attempt may begin on a full disk
        trackers = Trackers([TensorBoardTracker(tmp_path)], logging.getLogger("run"))
        for step in range(1, 7):
            size = next(tmp_path.iterdir()).stat().st_size
            soft = size + 10 if step in (3, 4) else limits[0]  # in the middle of a record
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, limits[1]))
            trackers.log(step, {"loss": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    trackers.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(s, float(s)) for s in range(1, 7)]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "TensorBoardTracker can't write at step 3, and tries again"
    ]


def test_a_tracker_whose_disk_is_full_says_so_once_and_goes_on_when_there_is_room(caplog: pytest.LogCaptureFixture):
    class Full:
        seen: ClassVar[list[int]] = []

        def log(self, step: int, figures: Figures) -> None:
            if step in (2, 3):
                raise OSError(28, "No space left on device")
            self.seen.append(step)

        def close(self) -> None: ...

    trackers = Trackers([Full()], logging.getLogger("run"))
    for step in (1, 2, 3, 4):
        trackers.log(step, {})
    assert Full.seen == [1, 4]
    assert caplog.text.count("can't write at step 2, and tries again") == 1
    assert "step 3" not in caplog.text
