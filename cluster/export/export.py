"""Writes a model of a checkpoint as a Hugging Face folder: aside, and renamed when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from cluster.export.hub import push, validate_new
from cluster.export.model_card import CardExtras, model_card
from cluster.export.source import ADAPTER_CONFIG, ExportSource, What, find_source, read_json
from cluster.export.weights import DTYPES, copy_adapter, copy_weights, validate_file_size
from cluster.storage.checkpoints import deleted_on_error, open_aside, publish
from contracts.errors import UserError, first_line

CARD = "README.md"
MODEL_FILES = {"config.json", "generation_config.json"}
"""They describe whole weights; an adapter has none of them."""


@dataclass(frozen=True)
class ExportJob:
    """What to export, and how."""

    source: Path
    """A run folder or a checkpoint."""
    what: What
    to: Path
    dtype: str | None
    """Of floating-point weights; None: as they are."""
    max_shard_size: str
    push_to_hub: str | None
    """Name of a repository on the hub."""
    private: bool
    extras: CardExtras


@dataclass(frozen=True)
class Exported:
    """What was written."""

    source: ExportSource
    weight_bytes: int
    files: tuple[str, ...]
    address: str | None
    """On the hub."""


def export(job: ExportJob) -> Exported:
    """Check everything, write the folder, push it.

    Raises:
        UserError: something of the job can't be used, and nothing was written; or the hub rejected the folder.
    """
    if job.to.exists():
        raise UserError(f"--to {job.to}: is there already; give a folder that is not")
    if job.dtype is not None and job.dtype not in DTYPES:
        raise UserError(f"--dtype {job.dtype}: must be {', '.join(DTYPES)}")
    validate_file_size(job.max_shard_size)
    source = find_source(job.source, job.what)
    card = model_card(source, job.push_to_hub or job.to.name, job.dtype, job.extras)
    if job.push_to_hub:
        validate_new(job.push_to_hub)
    try:
        folder = open_aside(job.to.absolute())
        with deleted_on_error(folder):
            weight_bytes = _write(source, folder, job)
            card.save(folder / CARD)
            publish(folder, job.to.absolute())
    except OSError as error:
        raise UserError(f"--to {job.to}: can't be written: {error.strerror or first_line(error)}") from error
    files = tuple(sorted(str(path.relative_to(job.to)) for path in job.to.rglob("*") if path.is_file()))
    address = push(job.to, job.push_to_hub, private=job.private) if job.push_to_hub else None
    return Exported(source, weight_bytes, files, address)


def _write(source: ExportSource, folder: Path, job: ExportJob) -> int:
    """Everything but the card; returns the bytes of the weights."""
    dtype = DTYPES[job.dtype] if job.dtype else None
    for file in _beside_the_weights(source):
        target = folder / file.relative_to(source.model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if source.what is What.ADAPTER:
        values = read_json(source.adapter / ADAPTER_CONFIG)
        if job.extras.base_model:
            values["base_model_name_or_path"] = job.extras.base_model
        (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return copy_adapter(source.adapter, folder, dtype)
    if job.dtype:
        _declare(folder / "config.json", job.dtype)
    return copy_weights(source.model, folder, dtype, job.max_shard_size)


def _beside_the_weights(source: ExportSource) -> Iterator[Path]:
    """Configuration, tokenizer and chat templates, in folders too."""
    listed = sorted(source.checkpoint / name for name in source.manifest.files)
    for file in listed:  # what else lies there has no checksum
        rewritten = file.suffix == ".safetensors" or file.name in (SAFE_WEIGHTS_INDEX_NAME, CARD)
        whole_only = file.name in MODEL_FILES or file.suffix == ".py"
        skipped = rewritten or source.adapter in file.parents or (source.what is What.ADAPTER and whole_only)
        if source.model in file.parents and not skipped:
            yield file


def _declare(path: Path, dtype: str) -> None:
    """Say the dtype in config.json, also for the parts of a model that have configurations of their own."""
    values = read_json(path)
    for section in (values, *(value for value in values.values() if isinstance(value, dict))):
        if section is values or "dtype" in section:
            section["dtype"] = dtype
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
