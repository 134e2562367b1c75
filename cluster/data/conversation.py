"""The normal form of a conversation: messages as a chat template takes them, from the forms that datasets have."""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]
"""``role`` and ``content`` as text, and what else the turn has (``tool_calls``, ``name``, …); nothing is None."""
Messages = list[Message]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
"""The field's names for roles, ShareGPT's and others; a role that is not here is the template's business."""
KNOWN_ROLES = {*ROLES.values(), "developer", "ipython"}


class Unusable(Exception):
    """A row that can't be used; the message is the reason under which it is counted."""


def read_messages(value: Any, name: str) -> Messages:
    """What a row holds under ``name``, as messages.

    Read are ``role``/``content`` and ShareGPT's ``from``/``value``, contents of text parts, and either of them as JSON
    in a string. Arrow gives every turn all keys that any turn has: those that are None are dropped.

    Raises:
        Unusable: it is no list of turns with a role and a text.
    """
    value = parsed(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Unusable(f"whose {name} is no list of {{role, content}}")
    return [_message(message, name) for message in value]


def parsed(value: Any) -> Any:
    """A conversation that is JSON in a string, decoded; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = isinstance(decoded, list) and decoded and all(isinstance(m, dict) for m in decoded)
    return decoded if turns and all("role" in m or "from" in m for m in decoded) else value


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Descriptions of tools, from a list or JSON in a string; None where a row has none.

    Raises:
        Unusable: it is something else.
    """
    try:
        if isinstance(value, str) and value.strip():
            value = json.loads(value)
        if isinstance(value, list):
            value = [json.loads(tool) if isinstance(tool, str) else tool for tool in value]
    except (ValueError, RecursionError) as error:
        raise Unusable("whose tools are text that is not JSON") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("whose tools are no list of objects")
    return [_without_none(tool) for tool in value]


def _message(turn: Message, name: str) -> Message:
    turn = _without_none(turn)
    role, content = turn.pop("role", turn.pop("from", None)), turn.pop("content", turn.pop("value", None))
    turn.pop("from", None), turn.pop("value", None)
    calls = turn.pop("tool_calls", None)
    if content is None and calls:
        content = ""  # a turn that only calls tools
    if isinstance(content, list):
        content = _joined(content, name)
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable(f"whose {name} has a turn without role or with a content that is not text")
    message: Message = {"role": ROLES.get(role.lower(), role), "content": content} | turn
    if calls:  # an empty list counts as a call in some templates
        message["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
    return message


def _joined(parts: list[Any], name: str) -> str:
    """The text of content in parts."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
            raise Unusable(f"whose {name} has a content with a part of kind {kind}; text alone is read")
    return "".join(part["text"] for part in parts)


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object, as templates write them; OpenAI has them as JSON in a string."""
    if not isinstance(call, dict):
        return call
    function = call.get("function", call)
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call
        function = function | {"arguments": arguments}
        return call | {"function": function} if "function" in call else function
    return call


def _without_none(value: Any) -> Any:
    """Without the keys that are None, at every depth."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
