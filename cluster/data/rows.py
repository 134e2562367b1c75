"""Reads rows as they are: JSONL, Parquet, folders of either, what ``datasets`` saved, and hub datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.config.sections import DataConfig
from cluster.data.locations import only_local
from contracts.errors import UserError, first_line

FILE_KINDS = (".jsonl", ".json", ".parquet")
BATCH_ROWS = 1000
"""Rows of a Parquet file in memory at a time."""


def read_rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL or Parquet file, of a folder (of such files, or saved by ``datasets``), or of a hub dataset.

    Raises:
        UserError: nothing readable is there; names file and line.
    """
    path = Path(data.path)
    if path.is_file():
        yield from _file_rows(path)
    elif path.is_dir():
        yield from _folder_rows(path, data.split)
    elif only_local(data.path) or path.suffix in FILE_KINDS:
        raise UserError(f"data.path {path}: no such file or folder")
    else:
        yield from _hub_rows(data)


def json_rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank.

    Raises:
        UserError: a line is not a JSON object in UTF-8, or the file can't be read; it is named after ``key``.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _json_object(line, f"{key} {path}:{number}")
    except OSError as error:
        raise UserError(f"{key} {path}: can't be read: {error.strerror}") from error


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}; one object a line is expected") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object is expected, found {type(row).__name__}")
    return row


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in FILE_KINDS:
        for _, row in json_rows(path, "data.path"):
            yield row
    else:
        raise UserError(f"data.path {path}: unknown kind of file; .jsonl and .parquet are read")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data.path {path}: not readable as Parquet: {first_line(error)}") from error


def _folder_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        from datasets import DatasetDict, load_from_disk

        try:
            loaded = load_from_disk(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data.path {path}: not readable as a saved dataset: {first_line(error)}") from error
        if isinstance(loaded, DatasetDict):
            if split not in loaded:
                raise UserError(f"data.split {split}: {path} has {', '.join(loaded)}")
            loaded = loaded[split]
        yield from loaded
        return
    files = sorted(p for p in path.iterdir() if p.suffix in FILE_KINDS)
    if not files:
        raise UserError(f"data.path {path}: holds neither a saved dataset nor .jsonl or .parquet files")
    for file in files:
        yield from _file_rows(file)


def _hub_rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(data.path, split=data.split)
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same to the user
        raise UserError(
            f"data.path {data.path}: no local file or folder, nor loadable from the hub: {first_line(error)}"
        ) from error
