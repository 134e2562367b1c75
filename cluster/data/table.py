"""Renders supervised rows or given pairs with the chat template and turns them into token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.token_table import TokenTable
from contracts.errors import UserError
from cluster.config.run_config import DataConfig
from cluster.data.rows import first_line, only_local, read_rows
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000
"""Rows tokenised at a time."""


@dataclass(frozen=True)
class Texts:
    """A row as text."""

    prompt: str
    responses: tuple[str, ...]
    """The response, or chosen and rejected."""
    templated: bool
    """Whether a chat template rendered it, and with it every special token."""


class Unusable(Exception):
    """A row that can't be used; the message is the reason under which it is counted."""


@dataclass
class DataReport:
    """What became of the rows."""

    source: str
    read: int = 0
    used: int = 0
    truncated: int = 0
    """Rows that lost prompt or response tokens to a length limit and are used."""
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        text = f"{self.source}: {self.used} of {self.read} rows used"
        if self.truncated:
            text += f", {self.truncated} of them truncated"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return text + (f"; dropped: {reasons}" if reasons else "")


def load_tokenizer(model: ModelConfig, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the template of the file ``chat_template`` if one is named.

    Raises:
        UserError: there is none at the path, it knows no end-of-sequence token, or the template can't be read.
    """
    key, path = ("model.tokenizer", model.tokenizer) if model.tokenizer else ("model.path", model.path)
    refuse_absent(path, key)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # OSError, ValueError, or a bare Exception from the Rust half: no tokenizer is there
        raise UserError(f"{key} {path}: no tokenizer could be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key} {path}: the tokenizer has no end-of-sequence token")
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template {chat_template}: can't be read: {first_line(error)}") from error
    return tokenizer


def refuse_absent(path: str, key: str) -> None:
    """Refuse at once what can only be a local path and is not there, before anything asks the hub for it.

    Raises:
        UserError: nothing is at ``path``.
    """
    if only_local(path) and not Path(path).exists():
        raise UserError(f"{key} {path}: no such folder")


def load_table(
    data: DataConfig, model: ModelConfig, method: str
) -> tuple[TokenTable, PreTrainedTokenizerBase, DataReport]:
    """Token ids of all usable rows, and what happened to the others.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    refuse_absent(model.path, "model.path")
    tokenizer = load_tokenizer(model, data.chat_template)
    report = DataReport(data.path)
    texts = _texts(read_rows(data), data, tokenizer, report, pairs=method == "offline")
    rows = list(islice(_fitted_rows(texts, tokenizer, data, report), data.max_rows))
    report.used = len(rows)
    if not rows:
        raise UserError(f"data.path: no usable row in {report}")
    return TokenTable.from_rows(rows), tokenizer, report


def _texts(
    rows: Iterable[dict[str, Any]], data: DataConfig, tokenizer: PreTrainedTokenizerBase, report: DataReport, *,
    pairs: bool,
) -> Iterator[Texts]:
    for row in rows:
        report.read += 1
        try:
            yield _pair_texts(row, data, tokenizer) if pairs else _supervised_texts(row, data, tokenizer)
        except Unusable as reason:
            report.dropped[str(reason)] += 1


def _supervised_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    if data.messages_column in row:
        return _conversation_texts(row[data.messages_column], data.messages_column, tokenizer)
    if data.prompt_column in row and data.completion_column in row:
        return _turn_texts(row[data.prompt_column], row[data.completion_column], data.completion_column, tokenizer)
    raise UserError(
        f"data.path {data.path}: no column {data.messages_column!r} and no {data.prompt_column!r} with "
        f"{data.completion_column!r}; the columns are {', '.join(row)}"
    )


def _pair_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    columns = (data.chosen_column, data.rejected_column)
    missing = [name for name in columns if name not in row]
    if missing:
        raise UserError(f"data.path {data.path}: no column {', '.join(missing)}; the columns are {', '.join(row)}")
    answers = [row[name] for name in columns]
    # A list of one message, like a string, answers the prompt column; a longer one holds its prompt.
    if data.prompt_column in row and all(isinstance(a, str) or len(a or ()) == 1 for a in answers):
        prompt = row[data.prompt_column]
        halves = [_turn_texts(prompt, a, name, tokenizer) for a, name in zip(answers, columns, strict=True)]
    else:
        halves = [_conversation_texts(a, name, tokenizer) for a, name in zip(answers, columns, strict=True)]
    chosen, rejected = halves
    if chosen.prompt != rejected.prompt:
        raise Unusable("whose chosen and rejected answer different prompts")
    return Texts(chosen.prompt, chosen.responses + rejected.responses, chosen.templated)


def _turn_texts(prompt: Any, completion: Any, column: str, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompt and completion as strings are taken as they are; as messages they are rendered."""
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise Unusable("with an empty response")
        return Texts(prompt, (completion,), templated=False)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise Unusable(f"whose prompt or {column} is neither text nor a list of messages")
    return _conversation_texts([*prompt, *completion], column, tokenizer)


def _conversation_texts(messages: Any, column: str, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """The last assistant turn is the response, everything before it the prompt."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Unusable(f"whose {column} is no list of {{role, content}}")
    if not all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages):
        raise Unusable(f"whose {column} has a turn without role or with a content that is not text")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise Unusable("without an assistant turn")
    if not messages[last]["content"].strip():
        raise Unusable("with an empty response")
    if last == 0:
        raise Unusable("without a turn before the response")
    prompt = render(tokenizer, messages[:last], add_generation_prompt=True)
    whole = render(tokenizer, messages[: last + 1], add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise Unusable("rendered by a chat template whose prompt is no prefix of the whole")
    return Texts(prompt, (whole[len(prompt) :],), templated=True)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The conversation as the chat template writes it.

    Raises:
        UserError: the tokenizer has no chat template.
        Unusable: the template refuses the conversation.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise UserError(
            f"data: conversations, and the tokenizer {tokenizer.name_or_path} has no chat template: name one in "
            "data.chat_template, use a tokenizer that has one (model.tokenizer), or prompt/completion columns"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise Unusable(f"refused by the chat template ({first_line(error)})") from error
    assert isinstance(text, str)
    return text


def _fitted_rows(
    texts: Iterator[Texts], tokenizer: PreTrainedTokenizerBase, data: DataConfig, report: DataReport
) -> Iterator[list[list[int]]]:
    for ids in _tokenised(texts, tokenizer):
        try:
            yield _fitted(ids, data, report)
        except Unusable as reason:
            report.dropped[str(reason)] += 1


def _tokenised(texts: Iterator[Texts], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Ids of each part on its own, so that a response's ids don't depend on what is before it."""
    for templated, alike in groupby(texts, lambda t: t.templated):
        while chunk := list(islice(alike, CHUNK_ROWS)):
            columns = [prompt_ids(tokenizer, [t.prompt for t in chunk], templated=templated)]
            for part in zip(*(t.responses for t in chunk), strict=True):
                columns.append(tokenizer(list(part), add_special_tokens=False)["input_ids"])
            for prompt, *responses in zip(*columns, strict=True):
                yield [prompt, *(_ended(response, tokenizer.eos_token_id) for response in responses)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, templated: bool) -> list[list[int]]:
    """Ids of prompts: a template has written the special tokens, plain text gets those that open a sequence."""
    ids: list[list[int]] = tokenizer(prompts, add_special_tokens=not templated)["input_ids"]
    if templated:
        return ids
    return [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in ids]


def _ended(response: list[int], eos: int) -> list[int]:
    """Up to the first end-of-sequence token, which is put there if the text has none."""
    return response[: response.index(eos) + 1] if eos in response else [*response, eos]


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
