"""Reads the prompts that a model is evaluated on, and turns them into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.data.conversation import Messages, Unusable, read_messages, read_tools
from cluster.data.json_rows import json_rows
from cluster.data.tokens import Tokenisation
from contracts.errors import UserError


@dataclass(frozen=True)
class Question:
    """One line of the prompts file."""

    where: str
    """file:line"""
    text: str
    """What the check is shown: the last message, or the prompt."""
    messages: Messages | None
    """The conversation up to the response; None for a plain prompt."""
    tools: list[dict[str, Any]] | None = None
    """What the chat template is given beside the conversation."""
    dataset: str = ""
    """What the line says in ``dataset``."""
    follow_ups: tuple[str, ...] = ()
    """What the user says next, each after the response to what was said before."""
    temperature: float = 0.0
    """At which a response is sampled where the question itself says so; 0: greedily."""

    def after(self, responses: Sequence[str]) -> Question:
        """The question that follows these responses to it and its first follow-ups."""
        said = list(self.messages or [{"role": "user", "content": self.text}])
        for response, next_turn in zip(responses, self.follow_ups, strict=False):
            said += [{"role": "assistant", "content": response}, {"role": "user", "content": next_turn}]
        return replace(self, messages=said, follow_ups=self.follow_ups[len(responses) :])

    def whole(self) -> Question:
        """All that the user says, with empty responses in between."""
        return self.after([""] * len(self.follow_ups))


def read_questions(path: Path, key: str = "--prompts") -> list[Question]:
    """The prompts of a JSONL file, or JSON array: ``messages`` (a last assistant turn is left out), ``instruction``
    (what a user says) or ``prompt`` (text that the model continues).

    Args:
        key: the option that names the file, for messages.

    Raises:
        UserError: there is no such file, no prompt in it, or a line that is none.
    """
    questions = [_question(row, f"{path}:{number}", key) for number, row in json_rows(path, key)]
    if not questions:
        raise UserError(f"{key} {path}: no prompt in it")
    return questions


def _question(row: dict[str, Any], where: str, key: str) -> Question:
    if "messages" in row:
        try:
            messages, tools = read_messages(row["messages"], "messages"), read_tools(row.get("tools"))
        except Unusable as reason:
            raise UserError(f"{key} {where}: a line {reason}") from reason
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        if not asked:
            raise UserError(f"{key} {where}: no message before the response")
        return Question(where, asked[-1]["content"], asked, tools)
    if isinstance(row.get("instruction"), str):  # AlpacaEval's
        said: Messages = [{"role": "user", "content": row["instruction"]}]
        return Question(where, row["instruction"], said, dataset=str(row.get("dataset") or ""))
    if isinstance(row.get("prompt"), str):
        return Question(where, row["prompt"], None)
    found = "a prompt that is not text" if "prompt" in row else f"the keys {', '.join(row) or '(none)'}"
    raise UserError(f"{key} {where}: messages, or instruction or prompt as text, is expected; found {found}")


def question_ids(question: Question, tokenisation: Tokenisation) -> list[int]:
    """Token ids [prompt tokens], as training has them.

    Raises:
        UserError: the chat template rejects the conversation, or nothing is left of the prompt.
    """
    try:
        ids = tokenisation.prompt_ids(question.text if question.messages is None else question.messages, question.tools)
    except Unusable as reason:
        raise UserError(f"--prompts {question.where}: {reason}") from reason
    if not ids:
        raise UserError(f"--prompts {question.where}: the prompt is empty")
    return ids
