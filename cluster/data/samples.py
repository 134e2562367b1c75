"""From the columns of a row to samples: a prompt, and the response or responses that are learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.config.sections import DataConfig
from cluster.data.conversation import Message, Messages, Unusable, parsed, read_messages, read_tools

SHAREGPT_COLUMN = "conversations"
"""Read where the default column of messages is not there."""
SYSTEM_ROLES = ("system", "developer")
Note = Callable[[str], None]
"""Takes a remark about the row: something is changed, cut or ignored."""


@dataclass(frozen=True)
class PlainText:
    """Prompt and responses as they are, special tokens in them included."""

    prompt: str
    responses: tuple[str, ...]
    """The response, or chosen and rejected."""

    @property
    def beginning(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Dialogue:
    """What a chat template is to render."""

    prompt: Messages
    responses: tuple[Message, ...]
    """The assistant's turn, or chosen and rejected."""
    tools: list[dict[str, Any]] | None = None

    @property
    def beginning(self) -> str:
        """The first turn that is not the system's: rows that share it are held out together."""
        turns = (turn["content"] for turn in self.prompt if turn["role"] not in SYSTEM_ROLES)
        return next(turns, "")


Sample = PlainText | Dialogue


class NoColumns(Unusable):
    """None of the named columns is in the row."""

    def __init__(self, reason: str, hint: str = "") -> None:
        """``hint``: which option names those that are there."""
        super().__init__(reason)
        self.hint = hint


def supervised_samples(row: dict[str, Any], data: DataConfig, note: Note) -> list[Sample]:
    """Samples of a row with a conversation, or with a prompt and a completion; one, or one for each assistant turn.

    Raises:
        Unusable: the columns hold no such thing.
    """
    column = data.messages_column
    if column == "messages" and row.get(column) is None and row.get(SHAREGPT_COLUMN) is not None:
        column = SHAREGPT_COLUMN
    prompt, answer = row.get(data.prompt_column), row.get(data.completion_column)
    if row.get(column) is None and answer is not None and data.prompt_column in row:
        if isinstance(plain := _plain_or_messages(prompt, (answer,), (data.completion_column,), note), PlainText):
            if _system(row, data, [], note):
                note("whose system column is ignored: prompt and completion are text that no template renders")
            return [plain]
        messages = plain[0]
    elif column in row:
        if prompt is not None and answer is not None:
            note(f"whose {data.prompt_column} and {data.completion_column} are ignored: it has {column} too")
        messages = read_messages(row[column], column)
    elif {data.prompt_column, data.completion_column} <= row.keys():
        raise Unusable(f"whose prompt or {data.completion_column} is neither text nor a list of messages")
    else:
        reason = f"no column {column!r} and no {data.prompt_column!r} with {data.completion_column!r}"
        raise NoColumns(reason, _hint(row))
    return _samples(_system(row, data, messages, note) + messages, read_tools(row.get(data.tools_column)), data, note)


def _hint(row: dict[str, Any]) -> str:
    """Which option to set where another column holds a conversation."""
    for column, value in row.items():
        try:
            turns = read_messages(value, column)
        except Unusable:
            continue
        if any(turn["role"] == "assistant" for turn in turns):
            return f"{column} holds a conversation: set data.messages_column={column}"
    return "name them in data.messages_column, or in data.prompt_column and data.completion_column"


def pair_sample(row: dict[str, Any], data: DataConfig, note: Note) -> Sample:
    """Prompt, chosen and rejected response of a row.

    Raises:
        Unusable: the columns hold no such thing, or both halves are the same.
    """
    columns = (data.chosen_column, data.rejected_column)
    if missing := [name for name in columns if name not in row]:
        raise NoColumns(f"no column {', '.join(missing)}", "name them in data.chosen_column and data.rejected_column")
    answers = tuple(row[name] for name in columns)
    halves = _plain_or_messages(row.get(data.prompt_column), answers, columns, note)
    if isinstance(halves, PlainText):
        if _system(row, data, [], note):
            note("whose system column is ignored: prompt and responses are text that no template renders")
        sample: Sample = halves
    else:
        system = _system(row, data, halves[0], note)
        tools = read_tools(row.get(data.tools_column))
        chosen, rejected = (_last_turn(system + half, tools, note) for half in halves)
        if chosen.prompt != rejected.prompt:
            raise Unusable(_difference(chosen.prompt, rejected.prompt))
        sample = Dialogue(chosen.prompt, chosen.responses + rejected.responses, tools)
    if sample.responses[0] == sample.responses[1]:
        raise Unusable("whose chosen and rejected are the same")
    return sample


def _plain_or_messages(
    prompt: Any, answers: tuple[Any, ...], columns: tuple[str, ...], note: Note
) -> PlainText | list[Messages]:
    """Text all through stays as it is; else the conversation that each answer ends."""
    prompt, answers = parsed(prompt), tuple(parsed(answer) for answer in answers)
    if all(isinstance(answer, str) for answer in answers) and not isinstance(prompt, list | dict):
        if not isinstance(prompt, str):
            raise Unusable(f"whose {columns[0]} is text and whose prompt is not")
        if not all(answer.strip() for answer in answers):
            raise Unusable("with an empty response")
        return PlainText(prompt, answers)
    return [_conversation(prompt, answer, name, note) for answer, name in zip(answers, columns, strict=True)]


def _conversation(prompt: Any, answer: Any, column: str, note: Note) -> Messages:
    """The whole conversation of which ``answer`` is the end, or which ``answer`` is."""
    for value in (prompt, answer):
        if value is not None and not isinstance(value, str | list | dict):
            raise Unusable(f"whose prompt or {column} is neither text nor a list of messages")
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else read_messages(answer, column)
    if prompt is None or prompt == []:
        return turns
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else read_messages(prompt, "prompt")
    if not turns or turns[0]["role"] == "assistant":
        return asked + turns
    if turns[: len(asked)] == asked:
        return turns
    if not isinstance(prompt, str):
        raise Unusable(f"whose {column} neither begins with its prompt nor with an assistant turn")
    if all(prompt.strip() != turn["content"].strip() for turn in turns):
        note(f"whose prompt is ignored: {column} is a conversation and its prompt is another")
    return turns


def _samples(messages: Messages, tools: list[dict[str, Any]] | None, data: DataConfig, note: Note) -> list[Sample]:
    if data.turns == "last":
        return [_last_turn(messages, tools, note)]
    answers = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    learned = [i for i in answers if i and _says_something(messages[i])]
    found: list[Sample] = [Dialogue(messages[:i], (messages[i],), tools) for i in learned]
    if found and len(learned) < len(answers):
        note("with assistant turns that are empty or open the conversation, which are not learned from")
    if found and answers[-1] + 1 < len(messages):
        note("with turns after the last assistant turn, which are left out")
    # Where no turn can be learned from, the reason is that of the last one.
    return found or [_last_turn(messages, tools, note)]


def _last_turn(messages: Messages, tools: list[dict[str, Any]] | None, note: Note) -> Dialogue:
    """The last assistant turn is the response, everything before it the prompt."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise Unusable("without an assistant turn")
    if not _says_something(messages[last]):
        raise Unusable("with an empty response")
    if last == 0:
        raise Unusable("without a turn before the response")
    if last + 1 < len(messages):
        note("with turns after the last assistant turn, which are left out")
    return Dialogue(messages[:last], (messages[last],), tools)


def _says_something(turn: Message) -> bool:
    return bool(turn["content"].strip() or turn.get("tool_calls"))


def _system(row: dict[str, Any], data: DataConfig, messages: Messages, note: Note) -> Messages:
    """The system column as a turn that opens ``messages``; nothing where there is none, or they have their own."""
    text = row.get(data.system_column)
    if text is not None and not isinstance(text, str):
        note("whose system column is ignored: it is not text")
    if not isinstance(text, str) or not text.strip():
        return []
    if messages and messages[0]["role"] in SYSTEM_ROLES:
        if messages[0]["content"].strip() != text.strip():
            note("whose system column is ignored: the conversation has a system turn of its own")
        return []
    return [{"role": "system", "content": text}]


def _difference(chosen: Messages, rejected: Messages) -> str:
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            if one["role"] == other["role"] == "assistant":
                return "whose chosen and rejected differ in more than the last assistant turn"
            break
    else:
        if chosen and rejected and abs(len(chosen) - len(rejected)) > 1:
            return "whose chosen and rejected differ in more than the last assistant turn"
    return "whose chosen and rejected answer different prompts"
