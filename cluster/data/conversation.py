"""Renders a conversation with the chat template: the text of its prompt and of its response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contracts.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""


class Unusable(Exception):
    """A row that can't be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Texts:
    """A row as text."""

    prompt: str
    responses: tuple[str, ...]
    """The response, or chosen and rejected."""
    templated: bool
    """Whether a chat template rendered it, and with it every special token."""


def validate_messages(value: Any, name: str) -> Messages:
    """What a row holds under ``name``, as a conversation.

    Raises:
        Unusable: it is no list of {role, content}, both text.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Unusable(f"whose {name} is no list of {{role, content}}")
    if not all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value):
        raise Unusable(f"whose {name} has a turn without role or with a content that is not text")
    return value


def conversation_texts(value: Any, name: str, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """The last assistant turn is the response, everything before it the prompt.

    Raises:
        UserError: the tokenizer has no chat template.
        Unusable: ``value`` is no conversation, has no such turn, or the template can't render it.
    """
    messages = validate_messages(value, name)
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise Unusable("without an assistant turn")
    if not messages[last]["content"].strip():
        raise Unusable("with an empty response")
    if last == 0:
        raise Unusable("without a turn before the response")
    prompt = render(messages[:last], tokenizer, add_generation_prompt=True)
    whole = render(messages[: last + 1], tokenizer, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise Unusable("rendered by a chat template whose prompt is no prefix of the whole")
    return Texts(prompt, (whole[len(prompt) :],), templated=True)


def render(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    """The conversation as the chat template writes it.

    Raises:
        UserError: the tokenizer has no chat template.
        Unusable: the template rejects the conversation.
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
        raise Unusable(f"rejected by the chat template ({first_line(error)})") from error
    assert isinstance(text, str)
    return text
