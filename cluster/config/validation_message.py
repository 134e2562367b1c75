"""The validation message: one line that names the wrong key, its value and what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import get_args

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from contracts.section import Section

PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text (numbers in quotes)",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping, as {key: value}",
    "a valid date": "a date, as 2024-07-26",
    "Datetimes provided to dates": "a date, as 2024-07-26",
}
EXPECTED = "expected"
"""Under this name a field says in words what it takes, where what its types take is hard to read."""


def validation_message(errors: list[ErrorDetails], root: type[Section]) -> str:
    """The first wrong key as `key value: what would be right`, and which others there are.

    A misspelt key comes first: that another one is missing is only its consequence.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in sorted(errors, key=lambda e: e["type"] != "extra_forbidden"):
        by_key.setdefault(_key(error["loc"], root), []).append(error)
    key, first = next(iter(by_key.items()))
    others = [k for k in by_key if k != key]
    return _message_of(key, first, root) + (f" (also wrong: {', '.join(others)})" if others else "")


def _message_of(key: str, errors: list[ErrorDetails], root: type[Section]) -> str:
    error = errors[0]
    match error["type"]:
        case "extra_forbidden":
            known = _suggestion(key, root)
            return f"{key}: unknown key; " + (
                f"did you mean {known}?" if known else "`sapo config --explain` lists the known ones"
            )
        case "missing":
            return f"{key}: required and not given"
        case "value_error":
            # Rules within a section name its field, rules across sections the whole key.
            message = error["msg"].removeprefix("Value error, ")
            return f"{key}.{message}" if key else message
        case "model_type" | "model_attributes_type":
            section = _section_at(key, root)
            names = ", ".join(section.model_fields) if section else ""
            return f"{key} {shown(error['input'])}: must be a section with keys of {names}"
        case "string_pattern_mismatch":
            remedy = "must be at most 100 letters, digits, dots, dashes and underscores, the first a letter or digit"
            return f"{key} {shown(error['input'])}: {remedy}"
    own = _expected(key, root)
    # A field that may be one thing or another has an error for each.
    wanted: Iterable[str] = [own] if own else dict.fromkeys(_plain(e["msg"]) for e in errors)
    return f"{key} {shown(error['input'])}: must be {' or '.join(wanted)}"


def _expected(key: str, root: type[Section]) -> str | None:
    """The field's own words."""
    prefix, _, name = key.rpartition(".")
    section = _section_at(prefix, root) if prefix else root
    extra = section.model_fields[name].json_schema_extra if section and name in section.model_fields else None
    words = extra.get(EXPECTED) if isinstance(extra, dict) else None
    return words if isinstance(words, str) else None


def _plain(message: str) -> str:
    """pydantic's `Input should be a valid integer, unable to parse …` in the words of somebody who writes YAML."""
    wanted = message.removeprefix("Input should be ")
    return next((plain for technical, plain in PLAIN_WORDS.items() if wanted.startswith(technical)), wanted)


def _key(loc: tuple[int | str, ...], root: type[Section]) -> str:
    """The dotted key of an error's location, without pydantic's labels for the members of a union."""
    parts: list[str] = []
    section: type[Section] | None = root
    for part in loc:
        if section is None and isinstance(part, str):
            break
        parts.append(str(part))
        if isinstance(part, int) and section is not None:  # one of a list of sections
            continue
        field = section.model_fields.get(str(part)) if section else None
        section = inner_section(field) if field else None
    return ".".join(parts)


def _section_at(key: str, root: type[Section]) -> type[Section] | None:
    """The section under a dotted key."""
    section: type[Section] | None = root
    for part in key.split("."):
        if part.isdecimal():  # one of a list of sections
            continue
        field = section.model_fields.get(part) if section else None
        section = inner_section(field) if field else None
    return section


def _suggestion(key: str, root: type[Section]) -> str | None:
    """The known key nearest to an unknown one: in its own section, else of the same name elsewhere."""
    prefix, _, name = key.rpartition(".")
    section = _section_at(prefix, root) if prefix else root
    close = get_close_matches(name, section.model_fields if section else (), n=1, cutoff=0.7)
    if close:
        return f"{prefix}.{close[0]}" if prefix else close[0]
    names = {known.rpartition(".")[2]: known for known in _all_keys(root)}
    return next((names[n] for n in get_close_matches(name, names, n=1, cutoff=0.8)), None)


def _all_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = inner_section(field)
        if inner:
            yield from _all_keys(inner, f"{prefix}{name}.")


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def shown(value: object) -> str:
    """A value as one would write it in YAML, shortened."""
    text = value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
