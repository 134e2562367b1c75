"""Loads the datasets of a run as token ids: one or several, a part of them held out, from the cache if it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from actors.token_table import DatasetShare, TableBuilder, TokenTable
from cluster.config.sections import DataConfig
from cluster.data.cache import Tables, cache_key, read_tables, write_tables
from cluster.data.ends import EndTokens
from cluster.data.files import DATA, Options
from cluster.data.report import DataReport
from cluster.data.rows import RowSource, find_rows
from cluster.data.table import add_rows
from cluster.data.tokens import Tokenisation
from cluster.storage.writable import validate_writable
from contracts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE_BYTES = 16 << 20
"""Datasets of smaller files are tokenised in seconds: they are not kept, and show no progress."""


HELD_OUT = Options("data.held_out", "data.split")


def load_tables(data: DataConfig, method: str, tokenizer: PreTrainedTokenizerBase, ends: EndTokens) -> Tables:
    """Token ids of all usable rows, and what happened to the others.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    sources = [find_rows(source.path, source.split, _named(data, i)) for i, source in enumerate(data.all_sources)]
    if isinstance(data.held_out, str) and any(_same(data.held_out, source.path) for source in data.all_sources):
        raise UserError(f"data.held_out {data.held_out}: the run is trained on it; name other rows, or a fraction")
    evaluated = find_rows(data.held_out, data.split, HELD_OUT) if isinstance(data.held_out, str) else None
    everything = [*sources, *([evaluated] if evaluated else [])]
    folder = _kept_in(everything, data, method, tokenizer, ends)
    if folder and (kept := read_tables(folder)):
        return kept
    if folder:  # what takes minutes is not to be lost
        validate_writable(folder, f"data.cache_dir {data.cache_dir}", "; name another folder, or null")
    tables = _tokenised(sources, evaluated, data, method, Tokenisation(tokenizer, ends, data))
    if folder:
        try:
            write_tables(folder, tables)
        except OSError as error:
            reason = f"can't be written: {error.strerror}; name another folder, or null"
            raise UserError(f"data.cache_dir {data.cache_dir}: {reason}") from error
    return tables


def _same(one: str, other: str) -> bool:
    """Whether they are one dataset, also under two names, as through a link."""
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _named(data: DataConfig, number: int) -> Options:
    """How messages name a dataset of the run."""
    return Options(f"data.sources.{number}.path", f"data.sources.{number}.split") if data.sources else DATA


def load_held_out(
    data: DataConfig, method: str, tokenizer: PreTrainedTokenizerBase, ends: EndTokens
) -> tuple[TokenTable | None, list[str]]:
    """The rows of the dataset ``data.held_out`` alone, for a method that trains on none, and what became of them.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    if not isinstance(data.held_out, str):
        return None, []
    source = find_rows(data.held_out, data.split, HELD_OUT)
    table, report = _evaluated_rows(source, data, method, Tokenisation(tokenizer, ends, data))
    return table, report.lines()


def _kept_in(
    sources: Sequence[RowSource],
    data: DataConfig,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    ends: EndTokens,
) -> Path | None:
    """The folder in which the result is kept; None where it is not."""
    if data.cache_dir is None or sum(source.size_bytes for source in sources) < LARGE_BYTES:
        return None
    names = [(source.split, [str(file) for file in source.left_out]) for source in sources]
    weights = [source.weight for source in data.all_sources]
    key = cache_key([s.files for s in sources], [*names, weights], data, method, tokenizer, ends)
    return Path(data.cache_dir).expanduser() / "data" / key if key else None


def _tokenised(
    sources: Sequence[RowSource], evaluated: RowSource | None, data: DataConfig, method: str, tokenisation: Tokenisation
) -> Tables:
    train, fraction = TableBuilder(_columns(method)), TableBuilder(_columns(method))
    reports: list[DataReport] = []
    shares: list[DatasetShare] = []
    for source, config in zip(sources, data.all_sources, strict=True):
        first = len(train)
        reports.append(_added(source, data, method, tokenisation, (train, fraction)))
        shares.append(DatasetShare(first, len(train) - first, config.weight))
    held_out = fraction.table() if len(fraction) else None
    if isinstance(data.held_out, float) and held_out is None:
        raise UserError(
            f"data.held_out {data.held_out:g}: of {len(train)} rows none is held out; a larger fraction, or the path "
            "of other rows"
        )
    if evaluated:
        held_out, report = _evaluated_rows(evaluated, data, method, tokenisation)
        reports.append(report)
    return Tables(train.table(tuple(shares) if len(shares) > 1 else ()), held_out, tuple(reports))


def _evaluated_rows(
    source: RowSource, data: DataConfig, method: str, tokenisation: Tokenisation
) -> tuple[TokenTable, DataReport]:
    """The first rows of a dataset that is held out as a whole: as pairs if they are, unless the run is supervised."""
    source, pairs = _pairs_in(source, data)
    read_as = "offline" if pairs and method != "sft" else "sft"
    whole = data.model_copy(update={"held_out": None, "max_rows": data.held_out_rows})
    builder = TableBuilder(_columns(read_as))
    report = _added(source, whole, read_as, tokenisation, (builder, TableBuilder(_columns(read_as))))
    report.source += " (data.held_out)"
    return builder.table(), report


def _columns(method: str) -> int:
    return 3 if method == "offline" else 2


def _pairs_in(source: RowSource, data: DataConfig) -> tuple[RowSource, bool]:
    """The same rows, and whether they are preference pairs: the first one tells."""
    first = next(source.rows, None)
    if first is None:
        return source, False
    pairs = {data.chosen_column, data.rejected_column} <= first.values.keys()
    return replace(source, rows=chain([first], source.rows)), pairs


def _added(
    source: RowSource,
    data: DataConfig,
    method: str,
    tokenisation: Tokenisation,
    builders: tuple[TableBuilder, TableBuilder],
) -> DataReport:
    """Add a dataset's rows, with a progress bar for a large one where somebody is looking."""
    from tqdm import tqdm

    hidden = True if source.size_bytes < LARGE_BYTES else None  # None: where the output is no terminal
    with tqdm(total=source.count, desc=source.path, unit=" rows", unit_scale=True, disable=hidden) as bar:

        def read(rows: int) -> None:
            bar.update(rows - bar.n)

        return add_rows(source, data, method, tokenisation, builders, read)
