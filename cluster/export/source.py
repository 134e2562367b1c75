"""Finds what is to be exported, in a run or in one checkpoint of it, and proves that it is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster.storage.checkpoints import MANIFEST, CheckpointManifest, verify
from cluster.storage.run_folder import saved_values, whole_checkpoints
from contracts.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"


class What(StrEnum):
    """A model of a checkpoint."""

    POLICY = "policy"
    AVERAGE = "average"
    ADAPTER = "adapter"


FOLDERS = {What.POLICY: "policy", What.AVERAGE: "ema", What.ADAPTER: "policy"}
"""Where they are in a checkpoint."""


@dataclass(frozen=True)
class ExportSource:
    """One model of one checkpoint."""

    what: What
    checkpoint: Path
    manifest: CheckpointManifest
    config: dict[str, Any]
    """The run's, as nested sections."""

    @property
    def model(self) -> Path:
        """The folder with configuration, tokenizer and whole weights."""
        return self.checkpoint / FOLDERS[self.what]

    @property
    def adapter(self) -> Path:
        return self.model / "adapter"

    @property
    def run(self) -> Path | None:
        """The run folder; None for a checkpoint that was copied out of it."""
        folder = self.checkpoint.parent.parent
        return folder if (folder / "config.yaml").exists() else None


def find_source(path: Path, what: What) -> ExportSource:
    """The model in a checkpoint, or in the newest checkpoint of a run.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    checkpoint = _checkpoint(path)
    manifest = verify(checkpoint, f"{FOLDERS[what]}/")
    source = ExportSource(what, checkpoint, manifest, saved_values(checkpoint / "config.yaml"))
    if not (source.model / "config.json").exists():
        raise UserError(f"{source.model}: no model is there")
    if what is What.ADAPTER and not (source.adapter / ADAPTER_CONFIG).exists():
        raise UserError(f"--what adapter: {checkpoint} has none: the run trained all weights (model.lora is not set)")
    return source


def read_json(path: Path) -> dict[str, Any]:
    """Raises:
    UserError: it is no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged: no JSON object")
    return values


def _checkpoint(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, such as runs/NAME, or a checkpoint in it")
    if (path / MANIFEST).exists():
        return path.absolute()
    found = whole_checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path}: no run with a checkpoint, and no checkpoint; give runs/NAME or one of its step-N")
    return found[-1].absolute()
