"""Pairs in a file, batch by batch: ``sapo generate`` writes it, method ``replay`` trains on it.

An Arrow stream: each batch is whole in the file when it is written, so a killed run leaves all but its last one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contracts.errors import UserError, first_line
from contracts.pair import PreferencePair, as_token_ids
from contracts.version import VERSION, validate_format

FORMAT = "2"
"""Changes with the columns and their meaning."""
FORMAT_KEY, VERSION_KEY = b"sapo.format", b"sapo.version"
TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt", TOKENS),
        ("chosen", TOKENS),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("replacement", TOKENS),
        ("suffix_kept", pa.bool_()),
        ("index", pa.int64()),
        ("row", pa.int64()),
        ("actor", pa.string()),
        ("versions", TOKENS),
        ("mean_logprob", pa.float64()),
        ("ended", pa.bool_()),
    ],
    metadata={FORMAT_KEY: FORMAT, VERSION_KEY: VERSION},
)
ARRAYS = ("prompt", "chosen", "replacement", "versions")


OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class PairRecorder:
    """Appends batches to a file."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        """Open the file.

        Args:
            first_step: the step that is written first; of an earlier file at ``path``, what it has before that is kept.
                0: a new file.

        Raises:
            UserError: it can't be written, or what is there is no recording.
        """
        aside = path.with_name(f"{path.name}.tmp")
        kept = _batches(path) if first_step and path.exists() else iter(())
        try:
            self._file = aside.open("wb")
            self._stream = pa.ipc.new_stream(self._file, SCHEMA, options=OPTIONS)
            for batch in kept:
                if batch["step"][0].as_py() < first_step:
                    self._stream.write_batch(batch)
            self._file.flush()
            os.replace(aside, path)
        except OSError as error:
            raise UserError(f"{path}: can't be written: {error}") from error

    def write(self, step: int, pairs: Sequence[PreferencePair]) -> None:
        """Append the batch that optimizer step ``step`` (from 0) reads."""
        columns = {
            name: [step] * len(pairs) if name == "step" else [getattr(pair, name) for pair in pairs]
            for name in SCHEMA.names
        }
        self._stream.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._file.flush()

    def close(self) -> None:
        self._stream.close()
        self._file.close()


def read_batches(path: str | Path) -> list[list[PreferencePair]]:
    """The recorded batches in order of their steps. A torn end, which a killed run leaves, is no batch.

    Raises:
        UserError: the file is missing, no recording, of another format, or has a gap.
    """
    batches: dict[int, list[PreferencePair]] = {}
    for batch in _batches(path):
        for row in batch.to_pylist():
            batches.setdefault(row.pop("step"), []).append(_pair(row))
    if not batches:
        raise UserError(f"data.path {path}: the recording holds no pair")
    first, last = min(batches), max(batches)
    if len(batches) != last - first + 1:
        raise UserError(f"data.path {path}: the recording has a gap: {len(batches)} batches of steps {first} to {last}")
    return [batches[step] for step in range(first, last + 1)]


def _batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    """
    Raises:
        UserError: the file is missing, no recording, or of another format.
    """
    try:
        file = pa.memory_map(str(path))
        stream = pa.ipc.open_stream(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data.path {path}: can't be read as a recording: {first_line(error)}") from error
    found = (stream.schema.metadata or {}).get(FORMAT_KEY)
    if found is not None:
        validate_format(f"data.path {path}", found.decode(errors="replace"), FORMAT)
    missing = set(SCHEMA.names) - set(stream.schema.names)
    if missing:
        raise UserError(f"data.path {path}: not a recording of pairs: no column {', '.join(sorted(missing))}")
    if found is None:
        validate_format(f"data.path {path}", None, FORMAT)
    with file:
        while True:
            try:
                batch = stream.read_next_batch()
            except (StopIteration, OSError, pa.ArrowInvalid):
                return
            if batch.num_rows:
                yield batch


def _pair(row: dict[str, Any]) -> PreferencePair:
    arrays: dict[str, Any] = {name: as_token_ids(row.pop(name)) for name in ARRAYS}
    mean_logprob = row.pop("mean_logprob")
    return PreferencePair(**arrays, **row, mean_logprob=np.nan if mean_logprob is None else mean_logprob)
