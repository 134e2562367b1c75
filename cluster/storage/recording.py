"""Pairs in a Parquet file, batch by batch: ``sapo generate`` writes it, method ``replay`` trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import UserError, first_line
from contracts.pair import PreferencePair, as_token_ids
from contracts.version import VERSION, validate_format

FORMAT = "1"
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


class PairRecorder:
    """Appends batches to a Parquet file."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UserError: it can't be written.
        """
        try:
            self._file = pq.ParquetWriter(path, SCHEMA)
        except OSError as error:
            raise UserError(f"{path}: can't be written: {error}") from error

    def write(self, step: int, pairs: Sequence[PreferencePair]) -> None:
        """Append the batch that optimizer step ``step`` (from 0) reads."""
        columns = {
            name: [step] * len(pairs) if name == "step" else [getattr(pair, name) for pair in pairs]
            for name in SCHEMA.names
        }
        self._file.write_table(pa.table(columns, schema=SCHEMA))

    def close(self) -> None:
        self._file.close()


def read_batches(path: str | Path) -> list[list[PreferencePair]]:
    """The recorded batches in order of their steps.

    Raises:
        UserError: the file is missing, no recording, of another format, or has a gap.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data.path {path}: can't be read as a recording: {first_line(error)}") from error
    found = (table.schema.metadata or {}).get(FORMAT_KEY)
    missing = set(SCHEMA.names) - set(table.column_names)
    if found is not None:
        validate_format(f"data.path {path}", found.decode(errors="replace"), FORMAT)
    if missing:
        raise UserError(f"data.path {path}: not a recording of pairs: no column {', '.join(sorted(missing))}")
    if found is None:
        validate_format(f"data.path {path}", None, FORMAT)
    batches: dict[int, list[PreferencePair]] = {}
    for row in table.select(SCHEMA.names).to_pylist():
        step = row.pop("step")
        batches.setdefault(step, []).append(_pair(row))
    if not batches:
        raise UserError(f"data.path {path}: the recording holds no pair")
    first, last = min(batches), max(batches)
    if len(batches) != last - first + 1:
        raise UserError(f"data.path {path}: the recording has a gap: {len(batches)} batches of steps {first} to {last}")
    return [batches[step] for step in range(first, last + 1)]


def _pair(row: dict[str, Any]) -> PreferencePair:
    arrays: dict[str, Any] = {name: as_token_ids(row.pop(name)) for name in ARRAYS}
    mean_logprob = row.pop("mean_logprob")
    return PreferencePair(**arrays, **row, mean_logprob=np.nan if mean_logprob is None else mean_logprob)
