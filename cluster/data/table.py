"""Turns datasets into token ids that fit the length limits, streaming from file to table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from actors.token_table import TableBuilder, TokenTable
from cluster.config.sections import DataConfig
from cluster.data.conversation import Unusable
from cluster.data.ends import EndTokens
from cluster.data.report import DataReport
from cluster.data.rows import RawRow, RowSource, find_rows
from cluster.data.samples import NoColumns, Sample, pair_sample, supervised_samples
from cluster.data.tokens import Ids, Texts, Tokenisation, Tokens
from contracts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_SAMPLES = 256
"""Samples tokenised at a time. The tokenizer takes some 200 bytes a token while it does so."""
TRUNCATED_PROMPT = "over max_length, whose prompt lost tokens on its left"
TRUNCATED_RESPONSE = "over max_length, whose response lost its end and so has no end token"


def load_table(
    data: DataConfig, method: str, tokenizer: PreTrainedTokenizerBase, ends: EndTokens
) -> tuple[TokenTable, DataReport]:
    """Token ids of all usable rows, and what happened to the others.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    source = data.all_sources[0]
    return source_table(find_rows(source.path, source.split), data, method, Tokenisation(tokenizer, ends, data))


def source_table(
    source: RowSource,
    data: DataConfig,
    method: str,
    tokenisation: Tokenisation,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[TokenTable, DataReport]:
    """The same of one dataset.

    Args:
        progress: called with the number of rows read, now and then.
    """
    report = DataReport(source.path, left_out=[str(file.name) for file in source.left_out])
    builder = TableBuilder(3 if method == "offline" else 2)
    rows = usable_rows(source.rows, data, method, tokenisation, report)
    for row in islice(rows, data.max_rows):
        builder.add(row)
        if not len(builder) % CHUNK_SAMPLES:
            progress(report.read)
    report.used = len(builder)
    if not report.used:
        raise UserError(f"data.path: no usable row in {report}")
    return builder.table(), report


def usable_rows(
    rows: Iterator[RawRow], data: DataConfig, method: str, tokenisation: Tokenisation, report: DataReport
) -> Iterator[tuple[Ids, ...]]:
    """Prompt and response, or prompt, chosen and rejected, of every sample within the length limits; all rows are
    counted in ``report``.

    Raises:
        UserError: no row has the named columns.
    """
    texts = _texts(rows, data, method, tokenisation, report)
    while chunk := list(islice(texts, CHUNK_SAMPLES)):
        notes = [partial(report.note, where=where) for where, _ in chunk]
        for (where, _), tokens in zip(chunk, tokenisation.tokens([t for _, t in chunk], notes), strict=True):
            try:
                if isinstance(tokens, Unusable):
                    raise tokens
                yield fitted(tokens, data, partial(report.note, where=where))
            except Unusable as reason:
                report.drop(str(reason), where)


def _texts(
    rows: Iterator[RawRow], data: DataConfig, method: str, tokenisation: Tokenisation, report: DataReport
) -> Iterator[tuple[str, Texts]]:
    """The samples of all rows as text, each with its row's place."""
    columns: str | None = None
    without = 0
    for row in rows:
        report.read += 1
        note = partial(report.note, where=row.where)
        try:
            samples: list[Sample] = (
                [pair_sample(row.values, data, note)]
                if method == "offline"
                else supervised_samples(row.values, data, note)
            )
            texts = [tokenisation.texts(sample, note) for sample in samples]
        except Unusable as reason:
            report.drop(str(reason), row.where)
            if isinstance(reason, NoColumns):
                without += 1
                columns = columns or f"{reason}; the columns are {', '.join(row.values) or '(none)'}"
            continue
        yield from ((row.where, text) for text in texts)
    if columns and without == report.read:
        raise UserError(f"data.path {report.source}: {columns}")


def fitted(tokens: Tokens, data: DataConfig, note: Callable[[str], None]) -> tuple[Ids, ...]:
    """Within ``max_length``: the prompt loses tokens on its left, then the responses on their right.

    Raises:
        Unusable: the limits leave nothing to learn from, or the configuration drops such rows.
    """
    prompt, responses = tokens.prompt, tokens.responses
    if len(prompt) + max(map(len, responses)) <= data.max_length:
        return (prompt, *responses)
    if len(prompt) > data.max_prompt_length:
        if data.long_prompts == "drop":
            raise Unusable(f"over {data.max_length} tokens with a prompt over {data.max_prompt_length}")
        opening = min(tokens.opening, data.max_prompt_length - 1)
        prompt = np.concatenate((prompt[:opening], prompt[len(prompt) - (data.max_prompt_length - opening) :]))
        note(TRUNCATED_PROMPT)
    room = data.max_length - len(prompt)
    if any(len(response) > room for response in responses):
        if data.long_responses == "drop":
            raise Unusable(f"over {data.max_length} tokens with a response over {room}")
        responses = tuple(response[:room] for response in responses)
        note(TRUNCATED_RESPONSE)
        if len(responses) > 1 and np.array_equal(*responses):
            raise Unusable(f"whose chosen and rejected are the same within {data.max_length} tokens")
    return (prompt, *responses)
