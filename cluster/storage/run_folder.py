"""The run folder: resolved config, metrics, samples, checkpoints, TensorBoard log."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.run_config import RunConfig
from cluster.storage.checkpoints import CheckpointManifest, verify
from cluster.storage.json_lines import JsonLines, drop_lines_after, read_lines
from cluster.storage.run_lock import validate_unused
from cluster.storage.writable import validate_writable
from contracts.background import write_whole
from contracts.errors import UserError, first_line


@dataclass(frozen=True)
class FoundCheckpoint:
    """Where a run goes on; the defaults: at its start, as there is no checkpoint."""

    folder: Path | None = None
    manifest: CheckpointManifest | None = None
    damaged: tuple[str, ...] = ()
    """What is wrong with newer ones."""

    @property
    def step(self) -> int:
        """Optimizer steps that are done there."""
        return self.manifest.step if self.manifest else 0


class Best(BaseModel):
    """What ``best.json`` says: the checkpoint with the highest of a figure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    figure: str
    mean: float


class RunFolder:
    """``runs/NAME/`` on the machine of the driver."""

    def __init__(self, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
        """Look, and touch nothing; ``prepare`` writes.

        Raises:
            UserError: it holds a run already and neither ``resume`` nor ``overwrite`` is set, or there is no checkpoint
                to resume from.
        """
        self._config = config
        self.path = config.run_dir.absolute()
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other: go on with the run, or replace it")
        if resume and self.newest_checkpoint() is None:
            raise UserError(f"{config.run_dir}: --resume, but it holds no whole checkpoint; start without --resume")
        self._newest = self.newest_checkpoint()
        self.spared: set[Path] = set()
        """Checkpoints in use, which ``prune`` leaves beside the best."""
        self._started = (self.path / "metrics.jsonl").exists() or self.newest_checkpoint() is not None
        self.resumed = self._started and (resume or (config.recovery.auto_resume and not overwrite))
        """Whether a run that is there is gone on with."""
        if self._started and not self.resumed and not overwrite:
            validate_unused(self.path)
            raise UserError(f"{config.run_dir}: holds a run already; give another name=, or --resume, or --overwrite")

    def validate_writable(self) -> None:
        """Raises:
        UserError: the folder could not be made where it should be.
        """
        validate_writable(self.path, f"output_dir {self._config.output_dir}")

    def prepare(self) -> None:
        """Make the folder and write config.yaml. A run that is overwritten is deleted now, after everything that can
        be checked before was.

        Raises:
            UserError: it can't be written.
        """
        try:
            if self._started and not self.resumed:
                shutil.rmtree(self.path)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "config.yaml", as_yaml(self._config))
        except OSError as error:
            raise UserError(
                f"output_dir {self._config.output_dir}: {error.filename} can't be written: {error.strerror}"
            ) from error

    @property
    def checkpoints(self) -> Path:
        """Where all checkpoints are."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of that step is, or will be."""
        return self.checkpoints / f"step-{step}"

    def newest_checkpoint(self) -> Path | None:
        """The whole checkpoint of the highest step; unfinished ones carry another name."""
        return next(reversed(self._whole()), None)

    def newest_valid_checkpoint(self) -> FoundCheckpoint:
        """The newest checkpoint whose files are all what was written.

        Raises:
            UserError: there are some, and none is valid; it says what is wrong with the newest.
        """
        damaged: dict[str, UserError] = {}
        for folder in reversed(self._whole()):
            try:
                return FoundCheckpoint(folder, _verified(folder), tuple(map(str, damaged.values())))
            except UserError as error:
                damaged[folder.name] = error
        if damaged:
            newest, *others = damaged
            too = f", {', '.join(others)} neither" if others else ""
            raise UserError(f"{damaged[newest]}; {newest} can't be used{too}; --overwrite begins anew")
        return FoundCheckpoint()

    def validate_unchanged(self) -> None:
        """Raises:
        UserError: another run has written here since this was made.
        """
        if self.newest_checkpoint() != self._newest:
            raise UserError(f"{self.path}: another run has written here meanwhile; start again")

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints after ``step``: they are damaged, and the run will write those steps again."""
        for folder in self._whole():
            if _step_of(folder) > step:
                aside = folder.with_name(f"{folder.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints, the best and those in use; and unfinished ones."""
        left = self.spared | {self.best_checkpoint()}
        for folder in self._whole()[:-keep]:
            if folder not in left:
                shutil.rmtree(folder)
        for folder in self.checkpoints.glob("step-*.tmp"):
            shutil.rmtree(folder)

    def best(self) -> Best | None:
        """The best checkpoint so far; None where none was named, or it is gone.

        Raises:
            UserError: best.json is damaged.
        """
        path = self.path / "best.json"
        if not path.exists():
            return None
        try:
            best = Best.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(f"{path}: damaged: {error.errors()[0]['msg']}; mend or delete it") from error
        return best if self.checkpoint(best.step).exists() else None

    def best_checkpoint(self) -> Path | None:
        """Its folder."""
        best = self.best()
        return self.checkpoint(best.step) if best else None

    def keep_best(self, step: int, figure: str, mean: float) -> None:
        """Name the checkpoint of ``step`` the best, in place of the one before; a kill leaves one or the other."""
        write_whole(self.path / "best.json", Best(step=step, figure=figure, mean=mean).model_dump_json())

    def _whole(self) -> list[Path]:
        return whole_checkpoints(self.checkpoints)

    def logged_steps(self, name: str) -> set[int]:
        """Steps of which a JSONL file has a line.

        Raises:
            UserError: it has a line that is none.
        """
        return {step for step, _ in read_lines(self.path / name)}

    def keep_lines_below(self, name: str, step: int) -> None:
        """Drop what a JSONL file has after ``step``."""
        drop_lines_after(self.path / name, step)

    @property
    def recording(self) -> Path:
        """Where drawn pairs are recorded."""
        return self.path / "pairs.arrow"

    def open_lines(self, name: str) -> JsonLines:
        """A JSONL file of the run, to append to."""
        return JsonLines(self.path / name)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those in a run's folder of checkpoints, the oldest first; unfinished and damaged ones have other names."""
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=_step_of)


def _verified(folder: Path) -> CheckpointManifest:
    """Raises:
    UserError: it is not whole, or is another step's.
    """
    manifest = verify(folder)
    if manifest.step != _step_of(folder):
        raise UserError(f"{folder}: damaged: it holds the checkpoint of step {manifest.step}")
    return manifest


def as_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that ``load_config`` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def saved_values(path: Path) -> dict[str, Any]:
    """The values of a config.yaml that a run has written, as they stand: another version may have known other keys.

    Raises:
        UserError: it can't be read, or is none.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged: no mapping of sections")
    return values


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
