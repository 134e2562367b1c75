"""Writes checkpoints: taken between two steps, written aside beside the next ones, and renamed when they are whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from transformers import PreTrainedTokenizerBase

from cluster.config.sections import CheckpointConfig
from cluster.run.callbacks import is_due
from cluster.sources.base import BatchSource
from cluster.storage.checkpoints import deleted_on_error, open_aside, publish, write_manifest
from cluster.storage.run_folder import RunFolder
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.patience import Patience
from cluster.workers.ray_calls import WorkerFailure
from contracts.background import in_background
from contracts.errors import UserError, first_line
from contracts.stacks import stacks
from contracts.written import write_files, written_by

CLOSING_S = 10.0
"""After a failure, how long the checkpoint that is being written is waited for."""


@dataclass(frozen=True)
class Checkpointed:
    """What a checkpoint records of its run, besides what the parts write."""

    tokenizer: PreTrainedTokenizerBase
    data: str
    """Fingerprint of the training data."""
    total_steps: int
    """Of the run."""


@dataclass(frozen=True)
class _Writing:
    """A checkpoint on its way to the disk."""

    step: int
    aside: Path
    last: bool
    began: float
    held_s: float
    """How long training waited for its copies, and for the checkpoint before."""
    answer: Future[None]


class Checkpointer:
    """Learner state, EMA and policy as Hugging Face folders, the source's snapshot, config, step.

    One is written at a time; the next one waits for it. Its files are those of the moment at which it was taken.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        folder: RunFolder,
        group: LearnerGroup,
        source: BatchSource,
        content: Checkpointed,
        on_whole: Callable[[int, Path], None],
        stall_s: float,
        log: logging.Logger,
        evaluated_every: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            on_whole: called with the step and the folder of each.
            stall_s: writing one is not given up sooner, in seconds.
            evaluated_every: steps between checkpoints that are evaluated; 0: none is.
        """
        self._config, self._folder, self._group, self._source = config, folder, group, source
        self._content, self._on_whole, self._log, self._clock = content, on_whole, log, clock
        self._evaluated_every = evaluated_every
        self._patience = Patience(stall_s)
        self._tokenizer_files: dict[str, bytes] = {}
        """Taken once; they do not change."""
        self._writing: _Writing | None = None
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether the interval in steps or that in minutes is over at ``step``, or it is to be evaluated."""
        minutes = self._config.minutes
        if is_due(step, self._config.every) or is_due(step, self._evaluated_every):
            return True
        return minutes > 0 and self._clock() - self._last >= 60 * minutes

    def save(self, step: int, *, last: bool = False) -> None:
        """Take the checkpoint of ``step`` if there is none, and wait for the one before if it is still being written.

        Args:
            last: the run ends with it. It is whole when this returns.

        Raises:
            UserError: this one or the one before could not be written, and that ends the run.
            WorkerFailure: a part of the run died meanwhile, or does not get on.
        """
        began = self._last = self._clock()
        self._finish()
        final = self._folder.checkpoint(step)
        if final.exists():
            return
        background = self._config.background and not last
        try:
            aside = open_aside(final)
            with deleted_on_error(aside):
                parts = [self._group.save(aside, background=background), self._source.snapshot(aside)]
        except (OSError, UserError, WorkerFailure) as error:
            self._failed(step, error, last=last)
            return
        answer = in_background(partial(self._complete, step, aside, parts), f"checkpoint-{step}")
        self._writing = _Writing(step, aside, last, began, self._clock() - began, answer)
        if not background:
            self._finish()

    def poll(self) -> None:
        """Take note of a checkpoint that has become whole, or has failed.

        Raises:
            UserError: it could not be written, and that ends the run.
            WorkerFailure: a part of the run died meanwhile, or does not get on.
        """
        if self._writing is None:
            return
        if self._writing.answer.done():
            self._settle()
        elif (seconds := self._clock() - self._writing.began) > self._patience.limit_s:
            why = f"{seconds:.0f} s after a checkpoint was begun"
            self._log.debug("driver %s:\n%s", why, stacks())
            self._group.log_stacks(why, self._source.stacks())
            reason = f"checkpoint of step {self._writing.step}: not written within {seconds:.0f} s"
            raise WorkerFailure(f"{reason}; stacks are in run.log", died=True)

    def close(self) -> None:
        """After a failure: what is nearly written still counts. The rest stays aside, and the next one deletes it."""
        if self._writing is None:
            return
        wait_for_futures([self._writing.answer], CLOSING_S)
        if self._writing.answer.done() and self._writing.answer.exception() is None:
            self._settle()
        self._writing = None

    def _finish(self) -> None:
        while self._writing is not None:
            wait_for_futures([self._writing.answer], 1.0)
            self.poll()

    def _complete(self, step: int, aside: Path, parts: list[Callable[[], object]]) -> None:
        """Runs beside training: the driver's own files, everything durable, the manifest."""
        with deleted_on_error(aside):
            if not self._tokenizer_files:
                self._tokenizer_files = written_by(self._content.tokenizer.save_pretrained)
            for name in ("policy", "ema"):
                write_files(aside / name, self._tokenizer_files)
            (aside / "config.yaml").write_text((self._folder.path / "config.yaml").read_text())
            for written in parts:
                written()
            write_manifest(aside, step, self._content.data, self._content.total_steps)

    def _settle(self) -> None:
        assert self._writing is not None
        done, self._writing = self._writing, None
        try:
            done.answer.result()
            final = self._folder.checkpoint(done.step)
            publish(done.aside, final)
            self._folder.prune(self._config.keep)
        except (OSError, UserError, WorkerFailure) as error:
            self._failed(done.step, error, last=done.last)
            return
        seconds = self._clock() - done.began
        self._patience.observe(seconds)
        self._log.debug(
            "checkpoint of step %d: %.1f s, training waited %.1f s",
            done.step,
            seconds,
            done.held_s,
            extra={"event": "checkpoint", "step": done.step, "seconds": seconds, "held_s": done.held_s},
        )
        self._on_whole(done.step, final)

    def _failed(self, step: int, failure: OSError | UserError | WorkerFailure, *, last: bool) -> None:
        """
        Raises:
            UserError: the run ends with it.
            WorkerFailure: it was no matter of the disk.
        """
        if isinstance(failure, ray.exceptions.GetTimeoutError):  # an OSError too, and no matter of the disk either
            raise failure
        if isinstance(failure, WorkerFailure) and failure.died:
            raise failure
        text = f"checkpoint of step {step} could not be written: {first_line(failure)}"
        newest = self._folder.newest_checkpoint()
        kept = f"the newest is {newest.name}" if newest else "there is none before it"
        if last or self._config.on_error == "end":
            raise UserError(f"{text}; {kept}") from failure
        self._log.error("%s; training goes on without it, %s", text, kept, extra={"event": "checkpoint failed"})
