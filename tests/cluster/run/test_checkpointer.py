"""When a checkpoint is due, and what becomes of a run whose checkpoint can't be written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.config.run_config import RunConfig
from cluster.config.sections import CheckpointConfig
from cluster.run import checkpointer as module
from cluster.run.checkpointer import Checkpointed, Checkpointer
from cluster.storage.checkpoints import verify
from cluster.storage.run_folder import RunFolder
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError

FULL = OSError(28, "No space left on device")


class Group:
    """Writes a file for each part when the test lets it, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """Raised while it is written."""
        self.may_write = threading.Event()
        self.may_write.set()
        self.value = "at first"
        self.stacks_logged: dict[str, Any] = {}

    def save(self, folder: Path, *, background: bool) -> Callable[[], object]:
        taken = self.value

        def written() -> None:
            self.may_write.wait(10)
            if self.error:
                raise self.error
            (folder / "learner").mkdir()
            (folder / "learner" / "rank-0.safetensors").write_text(taken)

        if not background:
            written()
        return written if background else lambda: None

    def log_stacks(self, why: str, others: dict[str, Any]) -> None:
        self.stacks_logged = {why: others}


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[SimpleNamespace]:
    values = {"name": "r", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}}
    folder = RunFolder(RunConfig.model_validate(values), resume=False, overwrite=False)
    folder.prepare()
    parts = SimpleNamespace(folder=folder, group=Group(), clock=Clock(), whole=[])
    yield parts
    parts.group.may_write.set()


def save_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def made(
    parts: SimpleNamespace, save_pretrained: Callable[[Path], None] = save_tokenizer, **config: Any
) -> Checkpointer:
    tokenizer: Any = SimpleNamespace(save_pretrained=save_pretrained)
    source: Any = SimpleNamespace(snapshot=lambda folder: lambda: None, stacks=lambda: {"shard 0": "call"})
    settings = CheckpointConfig.model_validate(config)
    return Checkpointer(
        settings,
        parts.folder,
        parts.group,
        source,
        Checkpointed(tokenizer, "data", 20),
        lambda step, folder: parts.whole.append((step, folder)),
        60.0,
        logging.getLogger("test"),
        clock=parts.clock,
    )


def names(parts: SimpleNamespace) -> list[str]:
    return sorted(path.name for path in parts.folder.checkpoints.iterdir())


def poll_until(condition: Callable[[], bool], checkpointer: Checkpointer) -> None:
    for _ in range(200):
        checkpointer.poll()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing came of it")


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


@pytest.mark.parametrize("background", [True, False])
def test_it_is_valid_and_the_oldest_go(parts: SimpleNamespace, background: bool) -> None:
    checkpointer = made(parts, keep=2, background=background)
    for step in (1, 2, 3):
        checkpointer.save(step, last=step == 3)
    assert parts.whole == [(step, parts.folder.checkpoint(step)) for step in (1, 2, 3)]
    assert names(parts) == ["step-2", "step-3"]
    assert verify(parts.folder.checkpoint(3)).step == 3


def test_training_goes_on_while_it_is_written_and_it_holds_what_was_then(parts: SimpleNamespace) -> None:
    checkpointer = made(parts)
    parts.group.may_write.clear()
    checkpointer.save(4)
    parts.group.value = "a step later"
    checkpointer.poll()
    assert names(parts) == ["step-4.tmp"] and not parts.whole
    parts.group.may_write.set()
    poll_until(lambda: bool(parts.whole), checkpointer)
    assert (parts.folder.checkpoint(4) / "learner" / "rank-0.safetensors").read_text() == "at first"


def test_the_next_one_waits_until_it_is_whole(parts: SimpleNamespace) -> None:
    checkpointer = made(parts)
    parts.group.may_write.clear()
    checkpointer.save(4)
    threading.Timer(0.2, parts.group.may_write.set).start()
    checkpointer.save(5)
    assert [step for step, _ in parts.whole] == [4]


def test_one_that_does_not_get_on_is_a_failure_with_everyones_stacks(
    parts: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    checkpointer = made(parts)
    parts.group.may_write.clear()
    checkpointer.save(4)
    parts.clock.seconds = 361.0
    with pytest.raises(WorkerFailure, match="checkpoint of step 4: not written within 361 s") as failure:
        checkpointer.poll()
    assert failure.value.died
    assert parts.group.stacks_logged == {"361 s after a checkpoint was begun": {"shard 0": "call"}}
    assert "in _complete" in caplog.text, "the driver writes files too"


def test_after_a_failure_what_is_nearly_written_counts_and_the_rest_can_be_ignored(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = made(parts)
    parts.group.may_write.clear()
    checkpointer.save(4)
    threading.Timer(0.2, parts.group.may_write.set).start()
    checkpointer.close()
    assert names(parts) == ["step-4"]
    monkeypatch.setattr(module, "CLOSING_S", 0.1)
    parts.group.may_write.clear()
    checkpointer.save(5)
    checkpointer.close()
    found = parts.folder.newest_valid_checkpoint()
    assert found.step == 4 and not found.damaged


@pytest.mark.parametrize(
    "error", [FULL, UserError("learner rank 1: disk full"), WorkerFailure("OSError: x", died=False)]
)
@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_ends_the_run_in_one_line_and_the_older_checkpoint_stays(
    parts: SimpleNamespace, error: Exception, background: bool
) -> None:
    checkpointer = made(parts, background=background)
    checkpointer.save(1)
    poll_until(lambda: bool(parts.whole), checkpointer)
    parts.group.error = error
    with pytest.raises(UserError, match=r"^checkpoint of step 2 could not be written: .*; the newest is step-1$"):
        checkpointer.save(2)
        poll_until(lambda: False, checkpointer)
    assert names(parts) == ["step-1"]
    verify(parts.folder.checkpoint(1))


def test_training_goes_on_without_a_checkpoint_if_it_may_but_not_without_the_last(
    parts: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = made(parts, on_error="continue")
    parts.group.error = FULL
    checkpointer.save(1)
    poll_until(lambda: "training goes on without it, there is none before it" in caplog.text, checkpointer)
    with pytest.raises(UserError, match="checkpoint of step 2"):
        checkpointer.save(2, last=True)
    assert not parts.whole


@pytest.mark.parametrize(
    "error", [WorkerFailure("rank-0 was killed", died=True), ray.exceptions.GetTimeoutError("a shard is silent")]
)
def test_what_dies_or_stands_still_meanwhile_is_not_a_full_disk(parts: SimpleNamespace, error: Exception) -> None:
    checkpointer = made(parts, on_error="continue")
    parts.group.error = error
    checkpointer.save(1)
    with pytest.raises(type(error)):
        poll_until(lambda: False, checkpointer)
    assert not names(parts)


def test_a_tokenizer_with_several_chat_templates_is_saved_with_all_of_them(parts: SimpleNamespace) -> None:
    """transformers writes those beside the first into a folder of their own."""

    def save(folder: Path) -> None:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text("t")

    made(parts, save).save(4, last=True)
    for name in ("policy", "ema"):
        assert (parts.folder.checkpoint(4) / name / "additional_chat_templates" / "tools.jinja").read_text() == "t"


def test_a_step_that_has_its_checkpoint_gets_no_second_one(parts: SimpleNamespace) -> None:
    checkpointer = made(parts)
    checkpointer.save(3)
    parts.group.value = "changed"
    checkpointer.save(3, last=True)
    assert (parts.folder.checkpoint(3) / "learner" / "rank-0.safetensors").read_text() == "at first"
    assert [step for step, _ in parts.whole] == [3]
