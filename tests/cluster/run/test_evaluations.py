"""Evaluations beside a run hold nothing up; what is skipped or fails is counted; the best checkpoint stays."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.config.sections import EvaluationConfig
from cluster.evaluation.messages import Evaluation, Share
from cluster.run.evaluations import Evaluations
from cluster.storage.json_lines import read_objects
from cluster.storage.run_folder import RunFolder
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from support.fake_workers import FakeCalls, FakeWorker


class Factory:
    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.ended = 0

    def start(self) -> FakeWorker:
        self.workers.append(FakeWorker(f"evaluator-{len(self.workers) + 1}"))
        return self.workers[-1]

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def parts(tmp_path: Path) -> SimpleNamespace:
    values = {"name": "r", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}}
    folder = RunFolder(RunConfig.model_validate(values), resume=False, overwrite=False)
    folder.prepare()
    return SimpleNamespace(folder=folder, factory=Factory(), now=0.0, happening=[])


def made(parts: SimpleNamespace, **config: Any) -> Evaluations:
    settings = EvaluationConfig.model_validate({"every": 10, "prompts": "p", "check": "m:f"} | config)
    lines = parts.folder.open_lines("evaluations.jsonl")
    calls: Any = FakeCalls()
    calls.happening = parts.happening
    log = logging.getLogger("test")
    return Evaluations(settings, parts.folder, lines, parts.factory, calls, 40, log, clock=lambda: parts.now)


def checkpoint(parts: SimpleNamespace, evaluations: Evaluations, step: int, keep: int = 1) -> None:
    folder = parts.folder.checkpoint(step)
    folder.mkdir()
    parts.folder.prune(keep)
    evaluations.on_checkpoint(step, folder)


def scored(greedy: float, sampled: float = 0.25) -> Evaluation:
    return Evaluation(Share(greedy, 0.1), Share(sampled, 0.05), prompts=7, samples=4)


def steps(parts: SimpleNamespace) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in parts.folder.checkpoints.iterdir())


def test_a_due_checkpoint_is_scored_while_the_run_steps_on(parts: SimpleNamespace) -> None:
    evaluations = made(parts)
    checkpoint(parts, evaluations, 5)
    assert not parts.factory.workers, "nothing is started before it is needed"
    checkpoint(parts, evaluations, 10)
    (worker,) = parts.factory.workers
    method, arguments, call = worker.calls[0]
    assert (method, arguments) == ("evaluate", (str(parts.folder.checkpoint(10) / "ema"),))
    evaluations.on_step(None)  # type: ignore[arg-type]
    assert evaluations.metrics() == {}
    call.answer(scored(0.5))
    evaluations.on_step(None)  # type: ignore[arg-type]
    expected = {"eval/step": 10.0, "eval/greedy": 0.5, "eval/greedy_error": 0.1}
    assert evaluations.metrics() == expected | {"eval/sampled": 0.25, "eval/sampled_error": 0.05}
    assert evaluations.metrics() == {}
    evaluations.close()
    (line,) = read_objects(parts.folder.path / "evaluations.jsonl")
    assert line == {
        "step": 10,
        "weights": "ema",
        "greedy": {"mean": 0.5, "error": 0.1},
        "sampled": {"mean": 0.25, "error": 0.05},
        "prompts": 7,
    }


def test_one_that_is_due_meanwhile_is_skipped_and_what_is_being_scored_stays(parts: SimpleNamespace) -> None:
    evaluations = made(parts)
    for step in (10, 20, 30):
        checkpoint(parts, evaluations, step)
    assert evaluations.metrics() == {"eval/skipped": 2.0}
    assert steps(parts) == [10, 30]
    parts.factory.workers[0].last("evaluate").answer(scored(0.5))
    evaluations.on_step(None)  # type: ignore[arg-type]
    parts.folder.prune(1)
    assert steps(parts) == [30]


def test_the_best_checkpoint_is_kept_by_the_chosen_figure(parts: SimpleNamespace) -> None:
    evaluations = made(parts, keep_best="sampled")
    for step, sampled in ((10, 0.5), (20, 0.5), (30, 0.4)):
        checkpoint(parts, evaluations, step)
        parts.factory.workers[0].last("evaluate").answer(scored(1.0 - sampled, sampled))
        evaluations.on_step(None)  # type: ignore[arg-type]
    parts.folder.prune(1)
    assert steps(parts) == [10, 30], "of equal ones the older is the best"
    again = made(parts, keep_best="sampled")  # another attempt
    checkpoint(parts, again, 40)
    parts.factory.workers[1].last("evaluate").answer(scored(0.0, 0.9))
    again.on_step(None)  # type: ignore[arg-type]
    parts.folder.prune(1)
    assert steps(parts) == [40]
    assert parts.folder.best_checkpoint() == parts.folder.checkpoint(40)


@pytest.mark.parametrize(
    ("error", "actors"),
    [
        (WorkerFailure("the actor died", died=True), 2),
        (WorkerFailure("RuntimeError: out of memory", died=False), 1),
        (UserError("--check m:f: KeyError"), 1),
    ],
)
def test_an_evaluation_that_fails_is_counted_and_the_next_goes_on(
    parts: SimpleNamespace, error: Exception, actors: int, caplog: pytest.LogCaptureFixture
) -> None:
    evaluations = made(parts)
    checkpoint(parts, evaluations, 10)
    parts.factory.workers[0].last("evaluate").fail(error)
    evaluations.on_step(None)  # type: ignore[arg-type]
    assert evaluations.metrics() == {"eval/failed": 1.0}
    assert str(error) in caplog.text
    checkpoint(parts, evaluations, 20)
    assert len(parts.factory.workers) == actors
    parts.factory.workers[-1].last("evaluate").answer(scored(0.5))
    evaluations.on_step(None)  # type: ignore[arg-type]
    assert evaluations.metrics()["eval/step"] == 20.0


def test_one_that_does_not_answer_in_time_is_given_up(parts: SimpleNamespace) -> None:
    evaluations = made(parts, timeout_s=60)
    checkpoint(parts, evaluations, 10)
    parts.now = 61.0
    evaluations.on_step(None)  # type: ignore[arg-type]
    assert evaluations.metrics() == {"eval/failed": 1.0}
    assert parts.factory.ended == 1
    checkpoint(parts, evaluations, 20)
    assert len(parts.factory.workers) == 2


def test_the_last_checkpoint_is_scored_when_the_run_has_ended(parts: SimpleNamespace) -> None:
    evaluations = made(parts)
    checkpoint(parts, evaluations, 30)
    checkpoint(parts, evaluations, 40)
    (worker,) = parts.factory.workers
    parts.happening += [
        lambda: worker.last("evaluate").answer(scored(0.3)),
        lambda: worker.last("evaluate").answer(scored(0.4)),
    ]
    evaluations.finish()
    evaluations.close()
    assert [line["step"] for line in read_objects(parts.folder.path / "evaluations.jsonl")] == [30, 40]


def test_a_run_without_evaluations_starts_nothing(parts: SimpleNamespace) -> None:
    evaluations = made(parts, every=0, prompts=None, check=None)
    checkpoint(parts, evaluations, 40)
    evaluations.finish()
    evaluations.close()
    assert not parts.factory.workers
    assert not (parts.folder.path / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"every": 5}, "set both"),
        ({"keep_best": "greedy"}, "keep_best: nothing is evaluated"),
        ({"check": "m:f"}, "check"),
    ],
)
def test_settings_that_would_do_nothing_are_rejected(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationConfig.model_validate(values)
