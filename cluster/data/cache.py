"""Keeps the tokens of large datasets on disk: under a key of all that they follow from, whatever it is called."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from actors.token_table import DatasetShare, Ragged, TokenTable
from cluster.config.sections import DataConfig
from cluster.data.ends import EndTokens
from cluster.data.report import DataReport
from contracts.version import VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
BLOCK_BYTES = 1 << 22
COLUMNS = ("prompts", "responses", "rejected")
NOT_CONTENT = {"path", "sources", "split", "cache_dir", "held_out_rows", "held_out_every"}
"""Fields of the configuration that do not change a row's tokens, or that the files' content stands for."""


@dataclass(frozen=True)
class Tables:
    """What is kept: rows to train on, rows held out, and what became of the rows of each dataset."""

    train: TokenTable
    held_out: TokenTable | None
    reports: tuple[DataReport, ...]


def cache_key(
    files: Sequence[Sequence[Path]],
    names: Sequence[Any],
    data: DataConfig,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    ends: EndTokens,
) -> str | None:
    """A name for the result of tokenising these files; None for a tokenizer that can't be told from another.

    Args:
        files: of each dataset, in order.
        names: what else tells the datasets apart: splits and weights.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    digest = xxhash.xxh3_128()
    for part in (
        f"{FORMAT} {VERSION} {'pairs' if method == 'offline' else 'rows'}",
        backend.to_str(),
        json.dumps(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True),
        repr((ends.ids, ends.closing, ends.written)),
        json.dumps(data.model_dump(mode="json", exclude=NOT_CONTENT), sort_keys=True),
        json.dumps(list(names)),
    ):
        digest.update(f"{len(part)}:{part}".encode())
    for dataset in files:
        digest.update(f"{len(dataset)} files".encode())
        for file in dataset:
            digest.update(f"{file.name} {file.stat().st_size}:".encode())
            for block in _blocks(file):
                digest.update(block)
    return digest.hexdigest()


def read_tables(folder: Path) -> Tables | None:
    """What ``write_tables`` wrote, mapped from the disk; None where nothing whole is."""
    try:
        stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        shares = tuple(DatasetShare(**share) for share in stored["shares"])
        train = _read(folder, "train", shares)
        held_out = _read(folder, "held_out", ()) if stored["held_out"] else None
        reports = tuple(_report(values) for values in stored["reports"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Tables(train, held_out, reports)


def write_tables(folder: Path, tables: Tables) -> None:
    """Write to a temporary folder, which gets its name when it is whole.

    Raises:
        OSError: nothing can be written there.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True)
    try:
        _write(partial, "train", tables.train)
        if tables.held_out is not None:
            _write(partial, "held_out", tables.held_out)
        stored = {
            "shares": [asdict(share) for share in tables.train.shares],
            "held_out": tables.held_out is not None,
            "reports": [vars(report) for report in tables.reports],
        }
        (partial / "report.json").write_text(json.dumps(stored), encoding="utf-8")
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # another run was faster
            raise


def _blocks(file: Path) -> Iterable[bytes]:
    with file.open("rb") as content:
        while block := content.read(BLOCK_BYTES):
            yield block


def _write(folder: Path, name: str, table: TokenTable) -> None:
    for column in COLUMNS:
        ragged: Ragged | None = getattr(table, column)
        if ragged is not None:
            np.save(folder / f"{name}-{column}.npy", ragged.flat)
            np.save(folder / f"{name}-{column}-offsets.npy", ragged.offsets)


def _read(folder: Path, name: str, shares: tuple[DatasetShare, ...]) -> TokenTable:
    def ragged(column: str) -> Ragged:
        flat = np.load(folder / f"{name}-{column}.npy", mmap_mode="r")
        return Ragged(flat, np.load(folder / f"{name}-{column}-offsets.npy", mmap_mode="r"))

    pairs = (folder / f"{name}-rejected.npy").is_file()
    return TokenTable(ragged("prompts"), ragged("responses"), ragged("rejected") if pairs else None, shares)


def _report(values: dict[str, Any]) -> DataReport:
    report = DataReport(**values)
    report.dropped, report.noted = Counter(report.dropped), Counter(report.noted)
    return report
