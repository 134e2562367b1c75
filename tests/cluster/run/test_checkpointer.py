"""When a checkpoint is due, and what becomes of a run whose checkpoint can't be written."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.config.sections import CheckpointConfig
from cluster.run.checkpointer import Checkpointer
from cluster.storage.checkpoints import verify
from cluster.storage.run_folder import RunFolder
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError

FULL = OSError(28, "No space left on device")


class Group:
    """Writes a file for each part, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "rank-0.safetensors").write_bytes(b"state")

    def export(self, folder: Path) -> None:
        if self.error:
            raise self.error
        for name in ("policy", "ema"):
            (folder / name).mkdir()


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def parts(tmp_path: Path) -> SimpleNamespace:
    values = {"name": "r", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}}
    folder = RunFolder(RunConfig.model_validate(values), resume=False, overwrite=False)
    folder.prepare()
    return SimpleNamespace(folder=folder, group=Group(), clock=Clock())


def made(parts: SimpleNamespace, **config: Any) -> Checkpointer:
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}"))
    source: Any = SimpleNamespace(snapshot=lambda folder: None)
    settings = CheckpointConfig.model_validate(config)
    log = logging.getLogger("test")
    return Checkpointer(settings, parts.folder, parts.group, source, tokenizer, "data", 20, log, clock=parts.clock)  # type: ignore[arg-type]


def test_it_is_due_by_steps_or_by_minutes(parts: SimpleNamespace) -> None:
    checkpointer = made(parts, every=4, minutes=10)
    assert [step for step in range(1, 9) if checkpointer.due(step)] == [4, 8]
    parts.clock.seconds = 599.0
    assert not checkpointer.due(5)
    parts.clock.seconds = 600.0
    assert checkpointer.due(5)
    checkpointer.save(5)
    assert not checkpointer.due(6)
    parts.clock.seconds = 1e6
    assert not made(parts, every=0, minutes=0).due(7)


def test_it_is_valid_and_the_oldest_go(parts: SimpleNamespace) -> None:
    checkpointer = made(parts, keep=2)
    for step in (1, 2, 3):
        saved = checkpointer.save(step)
        assert saved == parts.folder.checkpoint(step)
        assert saved is not None
        assert verify(saved).step == step
    assert sorted(p.name for p in parts.folder.checkpoints.iterdir()) == ["step-2", "step-3"]


@pytest.mark.parametrize(
    "error", [FULL, UserError("learner rank 1: disk full"), WorkerFailure("OSError: x", died=False)]
)
def test_a_full_disk_ends_the_run_in_one_line_and_the_older_checkpoint_stays(
    parts: SimpleNamespace, error: Exception
) -> None:
    checkpointer = made(parts)
    checkpointer.save(1)
    parts.group.error = error
    with pytest.raises(UserError, match=r"^checkpoint of step 2 could not be written: .*; the newest is step-1$"):
        checkpointer.save(2)
    assert [p.name for p in parts.folder.checkpoints.iterdir()] == ["step-1"]
    verify(parts.folder.checkpoint(1))


def test_training_goes_on_without_a_checkpoint_if_it_may_but_not_without_the_last(
    parts: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = made(parts, on_error="continue")
    parts.group.error = FULL
    assert checkpointer.save(1) is None
    assert "training goes on without it, there is none before it" in caplog.text
    with pytest.raises(UserError, match="checkpoint of step 2"):
        checkpointer.save(2, last=True)


def test_a_rank_that_dies_meanwhile_is_not_a_full_disk(parts: SimpleNamespace) -> None:
    parts.group.error = WorkerFailure("rank-0 was killed", died=True)
    with pytest.raises(WorkerFailure):
        made(parts, on_error="continue").save(1)
    assert not list(parts.folder.checkpoints.iterdir())
