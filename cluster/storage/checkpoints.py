"""A checkpoint on disk: written aside, renamed when it is whole, with a manifest that says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from contracts.errors import UserError
from contracts.version import VERSION, validate_format

FORMAT = 1
"""Changes with the files that a checkpoint holds."""
MANIFEST = "run.json"


class CheckpointManifest(BaseModel):
    """What ``run.json`` of a checkpoint says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    version: str
    """Of the program that wrote the checkpoint."""
    step: int
    """Optimizer steps that were done."""
    rows: int
    """Rows of the dataset."""
    total_steps: int | None = None
    """Of the run that wrote it, by which its learning rates were set; None where it is not known."""


def write_manifest(folder: Path, step: int, rows: int, total_steps: int | None = None) -> None:
    """Say in ``folder`` that it holds a checkpoint of this format."""
    manifest = CheckpointManifest(format=FORMAT, version=VERSION, step=step, rows=rows, total_steps=total_steps)
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")


def read_manifest(folder: Path) -> CheckpointManifest:
    """What the checkpoint in ``folder`` is.

    Raises:
        UserError: there is no manifest, it is damaged, or the checkpoint has another format.
    """
    path = folder / MANIFEST
    try:
        values = from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error
    validate_format(str(folder), values.get("format") if isinstance(values, dict) else None, FORMAT)
    try:
        return CheckpointManifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: damaged: {first['loc'][0]}: {first['msg']}") from error


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """An empty folder to write a checkpoint in; it becomes ``final`` if the body ends without an error."""
    aside = final.with_name(f"{final.name}.tmp")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(final)
