"""Turns a dataset into token ids that fit the length limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from actors.token_table import TokenTable
from cluster.config.sections import DataConfig
from cluster.data.columns import pair_texts, supervised_texts
from cluster.data.conversation import Texts, Unusable
from cluster.data.ends import EndTokens, closed, ended
from cluster.data.report import DataReport
from cluster.data.rows import read_rows
from contracts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000
"""Rows tokenised at a time."""


def load_table(
    data: DataConfig, method: str, tokenizer: PreTrainedTokenizerBase, ends: EndTokens
) -> tuple[TokenTable, DataReport]:
    """Token ids of all usable rows, and what happened to the others.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    report = DataReport(data.path)
    texts = _texts(read_rows(data), data, method, tokenizer, report)
    rows = list(islice(_fitted_rows(texts, tokenizer, ends, data, report), data.max_rows))
    report.used = len(rows)
    if not rows:
        raise UserError(f"data.path: no usable row in {report}")
    return TokenTable.from_rows(rows), report


def _texts(
    rows: Iterable[dict[str, Any]],
    data: DataConfig,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    report: DataReport,
) -> Iterator[Texts]:
    texts_of = pair_texts if method == "offline" else supervised_texts
    for row in rows:
        report.read += 1
        try:
            yield texts_of(row, data, tokenizer)
        except Unusable as reason:
            report.dropped[str(reason)] += 1


def _fitted_rows(
    texts: Iterator[Texts],
    tokenizer: PreTrainedTokenizerBase,
    ends: EndTokens,
    data: DataConfig,
    report: DataReport,
) -> Iterator[list[list[int]]]:
    for row, prompt, responses in _tokenised(texts, tokenizer):
        try:
            if row.templated:
                pairs = zip(responses, row.responses, strict=True)
                whole = [closed(ids, text, ends, tokenizer) for ids, text in pairs]
            else:
                whole = [ended(ids, ends) for ids in responses]
            yield _fitted([prompt, *whole], data, report)
        except Unusable as reason:
            report.dropped[str(reason)] += 1


def _tokenised(
    texts: Iterator[Texts], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Texts, list[int], list[list[int]]]]:
    """Each row with the ids of its prompt and of its responses: each part on its own, so that a response's ids don't
    depend on what is before it."""
    for templated, alike in groupby(texts, lambda t: t.templated):
        while chunk := list(islice(alike, CHUNK_ROWS)):
            columns = [prompt_ids(tokenizer, [t.prompt for t in chunk], templated=templated)]
            for part in zip(*(t.responses for t in chunk), strict=True):
                columns.append(tokenizer(list(part), add_special_tokens=False)["input_ids"])
            for row, prompt, *responses in zip(chunk, *columns, strict=True):
                yield row, prompt, responses


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, templated: bool) -> list[list[int]]:
    """Ids of prompts: a template has written the special tokens, plain text gets those that open a sequence."""
    ids: list[list[int]] = tokenizer(prompts, add_special_tokens=not templated)["input_ids"]
    if templated:
        return ids
    return [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in ids]


def _fitted(ids: list[list[int]], data: DataConfig, report: DataReport) -> list[list[int]]:
    """Within ``max_length``: the prompt loses tokens on its left, then the responses on their right."""
    prompt, *responses = ids
    if not prompt:
        raise Unusable("with an empty prompt")
    if len(prompt) + max(map(len, responses)) <= data.max_length:
        return ids
    if len(prompt) > data.max_prompt_length:
        if data.long_prompts == "drop":
            raise Unusable(f"over {data.max_length} tokens with a prompt over {data.max_prompt_length}")
        prompt = prompt[-data.max_prompt_length :]
    room = data.max_length - len(prompt)
    report.truncated += 1
    return [prompt, *(response[:room] for response in responses)]
