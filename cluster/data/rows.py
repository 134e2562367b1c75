"""Reads rows as they are: JSON, Parquet and Arrow files, folders of them, what ``datasets`` saved, hub datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.files import DATA, KINDS, Options, kind, split_files
from cluster.data.json_rows import json_rows
from cluster.data.locations import only_local
from contracts.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 200
"""Rows of a Parquet or Arrow file that are Python objects at a time."""


@dataclass(frozen=True)
class RawRow:
    """A row as it was read."""

    where: str
    """file:line, or file:row from 1 where there are no lines."""
    values: dict[str, Any]


@dataclass(frozen=True)
class RowSource:
    """A dataset that was found."""

    path: str
    split: str
    files: tuple[Path, ...] = ()
    """Files to read in turn; () for what ``datasets`` reads."""
    left_out: tuple[Path, ...] = ()
    """Files of the folder that are of another split."""
    rows: Iterator[RawRow] = field(default=iter(()), repr=False)
    count: int | None = None
    """Rows, where that is known without reading them."""
    option: str = "data.path"
    """What names it in the configuration."""

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def find_rows(path: str, split: str, options: Options = DATA) -> RowSource:
    """The rows of a file, of a folder (of files, or saved by ``datasets``), or of a hub dataset.

    Args:
        options: what messages name it by.

    Raises:
        UserError: nothing readable is there; while rows are read, also names file and line.
    """
    place = Path(path)
    if place.is_file():
        if kind(place) is None:
            raise UserError(
                f"{options.path} {path}: unknown kind of file; {', '.join(KINDS)} are read, JSON also as .gz, .zst"
            )
        if split != "train":
            raise UserError(
                f"{options.split} {split}: {options.path} {path} is one file, without splits; leave {options.split} out"
            )
        return _in_files(path, split, [place], [], place.parent, options.path)
    if place.is_dir():
        if (place / "dataset_dict.json").is_file() or (place / "dataset_info.json").is_file():
            return _loaded(path, split, place.name, _saved(place, split, options), options.path)
        files, left_out = split_files(place, split, options)
        return _in_files(path, split, files, left_out, place, options.path)
    if only_local(path) or kind(place) is not None:
        raise UserError(f"{options.path} {path}: no such file or folder")
    return _loaded(path, split, path, _from_hub(path, split, options.path), options.path)


def _in_files(path: str, split: str, files: list[Path], left_out: list[Path], root: Path, option: str) -> RowSource:
    rows = _files_rows(files, root, option)
    return RowSource(path, split, tuple(files), tuple(left_out), rows, _count(files), option)


def _files_rows(files: list[Path], root: Path, option: str) -> Iterator[RawRow]:
    for file in files:
        name = file.relative_to(root)
        rows: Iterator[tuple[int, dict[str, Any]]]
        if kind(file) == ".parquet":
            rows = enumerate(_parquet_rows(file, option), 1)
        elif kind(file) == ".arrow":
            rows = enumerate(_arrow_rows(file, option), 1)
        else:
            rows = json_rows(file, option)
        yield from (RawRow(f"{name}:{number}", row) for number, row in rows)


def _parquet_rows(path: Path, option: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: not readable as Parquet: {first_line(error)}") from error


def _arrow_rows(path: Path, option: str) -> Iterator[dict[str, Any]]:
    """Of an IPC stream, as ``datasets`` writes it, or an IPC file (Feather)."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            try:
                batches = iter(pa.ipc.open_stream(mapped))
            except pa.ArrowInvalid:
                mapped.seek(0)
                file = pa.ipc.open_file(mapped)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in batches:
                for start in range(0, len(batch), BATCH_ROWS):
                    yield from batch.slice(start, BATCH_ROWS).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: not readable as Arrow: {first_line(error)}") from error


def _count(files: list[Path]) -> int | None:
    """Rows of Parquet files, which say it; None for any other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if any(kind(file) != ".parquet" for file in files):
        return None
    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except (pa.ArrowException, OSError):  # told when the rows are read
        return None


def _saved(path: Path, split: str, options: Options) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{options.path} {path}: not readable as a saved dataset: {first_line(error)}") from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise UserError(f"{options.split} {split}: {path} has {', '.join(loaded)}")
        loaded = loaded[split]
    return loaded


def _from_hub(path: str, split: str, option: str) -> Dataset:
    from datasets import load_dataset

    try:
        return load_dataset(path, split=split)
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same to the user
        raise UserError(
            f"{option} {path}: no local file or folder, nor loadable from the hub: {first_line(error)}"
        ) from error


def _loaded(path: str, split: str, name: str, dataset: Dataset, option: str) -> RowSource:
    """Rows of what ``datasets`` has loaded, which lies in Arrow files."""
    rows = (RawRow(f"{name}:{number}", row) for number, row in enumerate(dataset, 1))
    files = tuple(Path(file["filename"]) for file in dataset.cache_files)
    return RowSource(path, split, files, (), rows, len(dataset), option)
