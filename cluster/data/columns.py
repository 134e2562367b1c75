"""Finds prompt and responses in the columns of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.config.sections import DataConfig
from cluster.data.conversation import Texts, Unusable, conversation_texts
from contracts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def supervised_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompt and response of a row with a conversation, or with a prompt and a completion.

    Raises:
        UserError: the row has none of the named columns, or the tokenizer lacks a chat template that it needs.
        Unusable: what the columns hold is no such thing.
    """
    if data.messages_column in row:
        return conversation_texts(row[data.messages_column], data.messages_column, tokenizer)
    if data.prompt_column in row and data.completion_column in row:
        return _answer_texts(row[data.prompt_column], row[data.completion_column], data.completion_column, tokenizer)
    raise UserError(
        f"data.path {data.path}: no column {data.messages_column!r} and no {data.prompt_column!r} with "
        f"{data.completion_column!r}; the columns are {', '.join(row)}"
    )


def pair_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompt, chosen and rejected response of a row.

    Raises:
        UserError: the row has none of the named columns, or the tokenizer lacks a chat template that it needs.
        Unusable: what the columns hold is no such thing.
    """
    columns = (data.chosen_column, data.rejected_column)
    missing = [name for name in columns if name not in row]
    if missing:
        raise UserError(f"data.path {data.path}: no column {', '.join(missing)}; the columns are {', '.join(row)}")
    answers = [row[name] for name in columns]
    # A list of one message, like a string, answers the prompt column; a longer one holds its prompt.
    if data.prompt_column in row and all(isinstance(a, str) or len(a or ()) == 1 for a in answers):
        prompt = row[data.prompt_column]
        halves = [_answer_texts(prompt, a, name, tokenizer) for a, name in zip(answers, columns, strict=True)]
    else:
        halves = [conversation_texts(a, name, tokenizer) for a, name in zip(answers, columns, strict=True)]
    chosen, rejected = halves
    if chosen.prompt != rejected.prompt:
        raise Unusable("whose chosen and rejected answer different prompts")
    return Texts(chosen.prompt, chosen.responses + rejected.responses, chosen.templated)


def _answer_texts(prompt: Any, answer: Any, column: str, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompt and answer as strings are taken as they are; as messages they are rendered."""
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer.strip():
            raise Unusable("with an empty response")
        return Texts(prompt, (answer,), templated=False)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise Unusable(f"whose prompt or {column} is neither text nor a list of messages")
    return conversation_texts([*prompt, *answer], column, tokenizer)
