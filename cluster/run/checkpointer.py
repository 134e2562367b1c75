"""Writes checkpoints: aside, and renamed when they are whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cluster.config.sections import CheckpointConfig
from cluster.run.callbacks import is_due
from cluster.sources.base import BatchSource
from cluster.storage.checkpoints import write_manifest, written_aside
from cluster.storage.run_folder import RunFolder
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError, first_line


class Checkpointer:
    """Learner state, EMA and policy as Hugging Face folders, the source's snapshot, config, step."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: RunFolder,
        group: LearnerGroup,
        source: BatchSource,
        tokenizer: PreTrainedTokenizerBase,
        data: str,
        total_steps: int,
        log: logging.Logger,
        evaluated_every: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            data: fingerprint of the training data.
            total_steps: of the run.
            evaluated_every: steps between checkpoints that are evaluated; 0: none is.
        """
        self._config, self._folder, self._group, self._source = config, folder, group, source
        self._tokenizer, self._data, self._total_steps = tokenizer, data, total_steps
        self._log, self._evaluated_every, self._clock = log, evaluated_every, clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether the interval in steps or that in minutes is over at ``step``, or it is to be evaluated."""
        minutes = self._config.minutes
        if is_due(step, self._config.every) or is_due(step, self._evaluated_every):
            return True
        return minutes > 0 and self._clock() - self._last >= 60 * minutes

    def save(self, step: int, *, last: bool = False) -> Path | None:
        """Write the checkpoint of ``step``, delete the oldest ones; returns its folder.

        Args:
            last: the run ends with it.

        Returns:
            None: it could not be written, and training goes on without it.

        Raises:
            UserError: it could not be written.
        """
        self._last = self._clock()
        try:
            return self._save(step)
        except (OSError, UserError) as error:
            failure: Exception = error
        except WorkerFailure as error:
            if error.died:
                raise
            failure = error
        text = f"checkpoint of step {step} could not be written: {first_line(failure)}"
        newest = self._folder.newest_checkpoint()
        kept = f"the newest is {newest.name}" if newest else "there is none before it"
        if last or self._config.on_error == "end":
            raise UserError(f"{text}; {kept}") from failure
        self._log.error("%s; training goes on without it, %s", text, kept, extra={"event": "checkpoint failed"})
        return None

    def _save(self, step: int) -> Path:
        final = self._folder.checkpoint(step)
        with written_aside(final) as aside:
            self._group.save(aside / "learner")
            self._group.export(aside)
            for name in ("policy", "ema"):
                self._tokenizer.save_pretrained(aside / name)
            self._source.snapshot(aside)
            (aside / "config.yaml").write_text((self._folder.path / "config.yaml").read_text())
            write_manifest(aside, step, self._data, self._total_steps)
        self._folder.prune(self._config.keep)
        seconds = self._clock() - self._last
        self._log.debug(
            "checkpoint of step %d: %.1f s",
            step,
            seconds,
            extra={"event": "checkpoint", "step": step, "seconds": seconds},
        )
        return final
