"""A checkpoint on disk: written aside, renamed when it is whole and durable, with a manifest that proves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from contracts.background import flush
from contracts.errors import UserError
from contracts.version import VERSION, validate_format

FORMAT = 2
"""Changes with the files that a checkpoint holds."""
MANIFEST = "run.json"
BLOCK_BYTES = 8 << 20
"""Read at a time for a checksum."""


class FileRecord(BaseModel):
    """What a file of a checkpoint must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    xxh3: str
    """128 bits, hexadecimal."""


class CheckpointManifest(BaseModel):
    """What ``run.json`` of a checkpoint says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    version: str
    """Of the program that wrote the checkpoint."""
    step: int
    """Optimizer steps that were done."""
    total_steps: int
    """Of the run that wrote it, by which its learning rates were set."""
    data: str
    """Fingerprint of the token ids that the run trains on."""
    files: dict[str, FileRecord]
    """Every other file, by its path in the checkpoint."""


def write_manifest(folder: Path, step: int, data: str, total_steps: int) -> None:
    """Make every file of the finished checkpoint durable, and say in it what each must be."""
    files = {}
    for path in _files(folder):
        files[str(path.relative_to(folder))] = _record(path)
        flush(path)
    manifest = CheckpointManifest(
        format=FORMAT, version=VERSION, step=step, total_steps=total_steps, data=data, files=files
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


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


def verify(folder: Path, below: str = "") -> CheckpointManifest:
    """Read every file of the checkpoint and compare it with the manifest.

    Args:
        below: read only files whose paths begin so.

    Raises:
        UserError: a file is missing or is not what was written, or the manifest can't be used.
    """
    manifest = read_manifest(folder)
    for name, written in manifest.files.items():
        if not name.startswith(below):
            continue
        path = folder / name
        try:
            if path.stat().st_size != written.bytes:
                raise UserError(f"{path}: damaged: {path.stat().st_size} bytes, {written.bytes} were written")
            if _record(path) != written:
                raise UserError(f"{path}: damaged: its checksum is not that of what was written")
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror}") from error
    return manifest


def open_aside(final: Path) -> Path:
    """An empty folder to write the checkpoint ``final`` in.

    Raises:
        FileExistsError: ``final`` is there already.
    """
    aside = final.with_name(f"{final.name}.tmp")
    if final.exists():
        raise FileExistsError(f"{final}: is there already")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


@contextmanager
def deleted_on_error(aside: Path) -> Iterator[None]:
    """A full disk gets its room back."""
    try:
        yield
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def publish(aside: Path, final: Path) -> None:
    """What was written aside is whole: it becomes ``final``."""
    aside.rename(final)
    flush(final.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _record(path: Path) -> FileRecord:
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksum.update(block)
    return FileRecord(bytes=path.stat().st_size, xxh3=checksum.hexdigest())
