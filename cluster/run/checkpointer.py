"""Writes checkpoints: aside, and renamed when they are whole."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cluster.config.sections import CheckpointConfig
from cluster.run.callbacks import is_due
from cluster.sources.base import BatchSource
from cluster.storage.checkpoints import write_manifest, written_aside
from cluster.storage.run_folder import RunFolder
from cluster.workers.learner_group import LearnerGroup


class Checkpointer:
    """Learner state, EMA and policy as Hugging Face folders, the source's snapshot, config, step."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: RunFolder,
        group: LearnerGroup,
        source: BatchSource,
        tokenizer: PreTrainedTokenizerBase,
        rows: int,
        total_steps: int,
    ) -> None:
        """
        Args:
            rows: of the dataset.
            total_steps: of the run.
        """
        self._config, self._folder, self._group, self._source = config, folder, group, source
        self._tokenizer, self._rows, self._total_steps = tokenizer, rows, total_steps

    def due(self, step: int) -> bool:
        """Whether the interval is over at ``step``."""
        return is_due(step, self._config.every)

    def save(self, step: int) -> Path:
        """Write the checkpoint of ``step``, delete the oldest ones; returns its folder."""
        final = self._folder.checkpoint(step)
        with written_aside(final) as aside:
            self._group.save(aside / "learner")
            self._group.export(aside)
            for name in ("policy", "ema"):
                self._tokenizer.save_pretrained(aside / name)
            self._source.snapshot(aside)
            (aside / "config.yaml").write_text((self._folder.path / "config.yaml").read_text())
            write_manifest(aside, step, self._rows, self._total_steps)
        self._folder.prune(self._config.keep)
        return final
