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
from cluster.run.attempt import Setting
from cluster.run.loop import Progress
from cluster.run.losses import Losses
from cluster.run.stopping import Stopped
from cluster.storage.checkpoints import write_manifest
from cluster.storage.json_lines import JsonLines
from cluster.storage.run_folder import RunFolder
from cluster.workers.failure_policy import FailurePolicy, Limits
from cluster.workers.member import Member
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from support.fake_workers import FakePlacement, FakeWorker

DIED = WorkerFailure("rank-1 was killed", died=True)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = {"name": "r", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}}
    folder = RunFolder(RunConfig.model_validate(values), resume=False, overwrite=False)
    folder.prepare()
    log = RunLog("r")
    log.keep(folder.path)
    monkeypatch.setattr(module, "wait_for_ray", lambda log: None)
    monkeypatch.setattr(module, "fitted", lambda config, log, use_gpu: config)
    absent: Any = None
    yield Setting(
        config=RunConfig.model_validate(values | {"generation": {"actors": 3}}),
        folder=folder,
        inputs=absent,
        total_steps=20,
        hardware=SimpleNamespace(use_gpu=False),  # type: ignore[arg-type]
        log=log,
        policy=FailurePolicy(Limits(restarts=2, backoff_s=0.0)),
        metrics=absent,
        losses=Losses(log.logger, lambda figures: None),
        mailbox=absent,
        last_resort=absent,
    )
    log.close()


class Attempts:
    """Each attempt steps to where the test says, with a checkpoint every four steps, and then fails or ends."""

    def __init__(self, setting: Any, *ends: tuple[int, Exception | None]) -> None:
        self._setting, self._ends = setting, list(ends)
        self.began: list[tuple[int, str]] = []
        self.actors: list[int] = []
        """Actors of each."""

    def __call__(self, setting: Any, checkpoint: Path | None, progress: Progress) -> str:
        self.began.append((progress.step, checkpoint.name if checkpoint else ""))
        self.actors.append(setting.config.generation.actors)
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


def survivor(number: int) -> Member:
    return Member(f"actor-{number}", FakePlacement(str(number)), None, 0.0, FakeWorker(str(number)))


def test_the_next_attempt_has_as_many_actors_as_were_asked_for_and_fit(setting, monkeypatch):
    setting.asked.more_actors = -1
    setting.survivors.extend(map(survivor, range(3)))
    assert run(setting, monkeypatch, (5, DIED), (20, None)).actors == [3, 2]
    assert [member.name for member in setting.survivors] == ["actor-0", "actor-1"]

    def fewer(config: RunConfig, log: object, use_gpu: bool) -> RunConfig:
        generation = config.generation.model_copy(update={"actors": min(2, config.generation.actors)})
        return config.model_copy(update={"generation": generation})

    monkeypatch.setattr(module, "fitted", fewer)
    for more, expected in ((2, 2), (-2, 1), (-9, 1)):
        setting.asked.more_actors = more
        assert module._on_what_is_left(setting).config.generation.actors == expected


def test_a_run_that_was_asked_to_stop_begins_no_new_attempt_if_it_has_a_checkpoint(setting, monkeypatch):
    setting.asked.stop = True
    with pytest.raises(Stopped, match="stopped at step 4 on request"):
        run(setting, monkeypatch, (7, DIED))
    assert steps(setting) == [1, 2, 3, 4]


def test_without_a_checkpoint_there_is_another_attempt_to_save_something(setting, monkeypatch):
    setting.asked.stop = True
    assert run(setting, monkeypatch, (3, DIED), (20, None)).began == [(0, ""), (0, "")]
