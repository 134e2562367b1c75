"""A run is a sequence of attempts: what died is started anew from the newest checkpoint, within the policy's limits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.reports.run_log import RunLog
from cluster.run import train as module
from cluster.run.loop import Progress
from cluster.run.losses import Losses
from cluster.storage.checkpoints import write_manifest
from cluster.storage.json_lines import JsonLines
from cluster.storage.run_folder import RunFolder
from cluster.workers.failure_policy import FailurePolicy, Limits
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError

DIED = WorkerFailure("rank-1 was killed", died=True)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = {"name": "r", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}}
    folder = RunFolder(RunConfig.model_validate(values), resume=False, overwrite=False)
    folder.prepare()
    log = RunLog("r")
    log.keep(folder.path)
    monkeypatch.setattr(module, "_on_what_is_left", lambda setting: setting)
    yield SimpleNamespace(
        folder=folder,
        log=log,
        policy=FailurePolicy(Limits(restarts=2, backoff_s=0.0)),
        losses=Losses(log.logger, lambda figures: None),
    )
    log.close()


class Attempts:
    """Each attempt steps to where the test says, with a checkpoint every four steps, and then fails or ends."""

    def __init__(self, setting: Any, *ends: tuple[int, Exception | None]) -> None:
        self._setting, self._ends = setting, list(ends)
        self.began: list[tuple[int, str]] = []

    def __call__(self, setting: Any, checkpoint: Path | None, progress: Progress) -> str:
        self.began.append((progress.step, checkpoint.name if checkpoint else ""))
        lines = JsonLines(self._setting.folder.path / "metrics.jsonl")
        last, error = self._ends.pop(0)
        for step in range(progress.step + 1, last + 1):
            lines.write({"step": step})
            progress.step = step
            if step % 4 == 0:
                folder = self._setting.folder.checkpoint(step)
                folder.mkdir()
                write_manifest(folder, step, data="d", total_steps=20)
        lines.close()
        if error:
            raise error
        return "balanced"


def run(setting: Any, monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, Exception | None]) -> Attempts:
    attempts = Attempts(setting, *ends)
    monkeypatch.setattr(module, "run_attempt", attempts)
    assert module._attempts(setting, None, Progress(0)) == "balanced"
    return attempts


def steps(setting: Any) -> list[int]:
    return [json.loads(line)["step"] for line in (setting.folder.path / "metrics.jsonl").read_text().splitlines()]


def test_the_run_goes_on_from_the_newest_checkpoint_without_a_gap_or_a_double(setting, monkeypatch):
    attempts = run(setting, monkeypatch, (6, DIED), (9, DIED), (12, None))
    assert attempts.began == [(0, ""), (4, "step-4"), (8, "step-8")]
    assert steps(setting) == list(range(1, 13))
    said = (setting.folder.path / "run.log").read_text()
    assert "a part of the run died at step 6 (rank-1 was killed); it goes on from step-4" in said


def test_what_died_too_often_ends_the_run_in_one_line(setting, monkeypatch):
    with pytest.raises(UserError, match=r"failed 3 times at step 11: rank-1 was killed; --resume") as ended:
        run(setting, monkeypatch, (6, DIED), (9, DIED), (11, DIED))
    assert "\n" not in str(ended.value)


def test_what_raised_is_tried_again_once_and_its_traceback_is_in_the_log(setting, monkeypatch):
    raised = WorkerFailure("OutOfMemoryError: 2 GiB", died=False)
    with pytest.raises(UserError, match="failed 2 times at step 6: OutOfMemoryError"):
        run(setting, monkeypatch, (6, raised), (6, raised))
    assert "Traceback" in (setting.folder.path / "run.log").read_text()


def test_a_run_without_a_checkpoint_begins_anew(setting, monkeypatch):
    attempts = run(setting, monkeypatch, (2, DIED), (8, None))
    assert attempts.began == [(0, ""), (0, "")]
    assert steps(setting) == list(range(1, 9))


def test_a_damaged_checkpoint_is_passed_over_and_set_aside(setting, monkeypatch):
    class Damaging(Attempts):
        def __call__(self, setting: Any, checkpoint: Path | None, progress: Progress) -> str:
            try:
                return super().__call__(setting, checkpoint, progress)
            finally:
                if len(self.began) == 1:
                    (setting.folder.checkpoint(8) / "run.json").write_text("{")

    attempts = Damaging(setting, (9, DIED), (12, None))
    monkeypatch.setattr(module, "run_attempt", attempts)
    module._attempts(setting, None, Progress(0))
    assert attempts.began == [(0, ""), (4, "step-4")]
    assert steps(setting) == list(range(1, 13))
    assert sorted(p.name for p in setting.folder.checkpoints.iterdir()) == [
        "step-12",
        "step-4",
        "step-8",
        "step-8.damaged",
    ]


def test_events_say_what_happened(setting, monkeypatch):
    run(setting, monkeypatch, (6, DIED), (12, None))
    (event,) = [json.loads(line) for line in (setting.folder.path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["reached"], event["step"]) == ("attempt failed", 6, 4)


def test_the_users_own_error_is_raised_as_it_was(setting, monkeypatch):
    with pytest.raises(UserError, match=r"^lower optimizer.lr$"):
        run(setting, monkeypatch, (6, UserError("lower optimizer.lr")))
