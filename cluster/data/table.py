"""Turns datasets into token ids that fit the length limits, streaming from file to table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from actors.token_table import TableBuilder
from cluster.config.sections import DataConfig
from cluster.data.conversation import Unusable
from cluster.data.report import DataReport
from cluster.data.rows import RawRow, RowSource
from cluster.data.samples import NoColumns, Note, Sample, pair_sample, supervised_samples
from cluster.data.tokens import Ids, Texts, Tokenisation, Tokens
from contracts.errors import UserError

CHUNK_SAMPLES, CHUNK_CHARACTERS = 256, 1 << 20
"""Samples tokenised at a time: at most so many, and no more after so many characters. The tokenizer takes some hundred
bytes a token while it does so."""
TRUNCATED_PROMPT = "over max_length, whose prompt lost tokens on its left"
TRUNCATED_RESPONSE = "over max_length, whose response lost its end and so has no end token"


def add_rows(
    source: RowSource,
    data: DataConfig,
    method: str,
    tokenisation: Tokenisation,
    builders: tuple[TableBuilder, TableBuilder],
    progress: Callable[[int], None] = lambda rows: None,
) -> DataReport:
    """Add the token ids of one dataset's usable rows to a table, and those of held-out ones to another.

    Args:
        builders: of the rows to train on and of those held out.
        progress: called with the number of rows read, now and then.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    report = DataReport(source.path, left_out=[file.name for file in source.left_out], option=source.option)
    train, held_out = builders
    for number, (beginning, row) in enumerate(usable_rows(source.rows, data, method, tokenisation, report), 1):
        if is_held_out(beginning, data.held_out):
            held_out.add(row)
            report.held_out += 1
        else:
            train.add(row)
            report.used += 1
        if not number % CHUNK_SAMPLES:
            progress(report.read)
        if report.used == data.max_rows:
            break
    progress(report.read)
    if not report.used:
        raise UserError(f"{source.option}: no usable row in {report}")
    return report


def is_held_out(beginning: str, held_out: float | str | None) -> bool:
    """Whether a row is of the fraction that is held out; what its conversation begins with alone decides."""
    if not isinstance(held_out, float):
        return False
    return xxhash.xxh3_64_intdigest(beginning.encode(errors="surrogatepass")) < held_out * 2.0**64


def usable_rows(
    rows: Iterator[RawRow], data: DataConfig, method: str, tokenisation: Tokenisation, report: DataReport
) -> Iterator[tuple[str, tuple[Ids, ...]]]:
    """Every sample within the length limits: what its conversation begins with, then the ids of prompt and response,
    or of prompt, chosen and rejected. All rows are counted in ``report``.

    Raises:
        UserError: no row has the named columns.
    """
    for chunk in _chunks(_samples(rows, data, method, tokenisation, report)):
        encoded = tokenisation.tokens([made.texts for made in chunk], [made.note for made in chunk])
        for made, tokens in zip(chunk, encoded, strict=True):
            try:
                if isinstance(tokens, Unusable):
                    raise tokens
                yield made.beginning, fitted(tokens, data, made.note)
            except Unusable as reason:
                report.drop(str(reason), made.where)


class _Rendered(NamedTuple):
    """A sample as text."""

    where: str
    """Of its row."""
    note: Note
    beginning: str
    """What its conversation begins with."""
    texts: Texts


def _chunks(samples: Iterator[_Rendered]) -> Iterator[list[_Rendered]]:
    chunk: list[_Rendered] = []
    characters = 0
    for made in samples:
        chunk.append(made)
        characters += sum(map(len, made.texts.wholes))
        if len(chunk) == CHUNK_SAMPLES or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _samples(
    rows: Iterator[RawRow], data: DataConfig, method: str, tokenisation: Tokenisation, report: DataReport
) -> Iterator[_Rendered]:
    """The samples of all rows as text."""
    columns: str | None = None
    without = 0
    for row in rows:
        report.read += 1
        note = report.notes_of(row.where)
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
                columns = columns or f"{reason}; the columns are {', '.join(row.values) or '(none)'}; {reason.hint}"
            continue
        except RecursionError:  # a reader's limit may be higher than that of what walks through the values
            report.drop("whose values are nested too deeply", row.where)
            continue
        for sample, text in zip(samples, texts, strict=True):
            yield _Rendered(row.where, note, sample.beginning, text)
    if columns and without == report.read:
        raise UserError(f"{report.option} {report.source}: {columns}")


def fitted(tokens: Tokens, data: DataConfig, note: Note) -> tuple[Ids, ...]:
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
        if len(responses) > 1 and np.array_equal(responses[0], responses[1]):
            raise Unusable(f"whose chosen and rejected are the same within {data.max_length} tokens")
    return (prompt, *responses)
