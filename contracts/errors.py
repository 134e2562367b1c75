"""The one error that a user is meant to read, and one line of any other, in words that say something."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_REASON = 300
"""Characters of a foreign error's line that are shown."""
UNSPOKEN = (LookupError, AssertionError, TypeError, ArithmeticError, AttributeError, NameError, RecursionError)
"""Errors whose text alone says nothing: ``'nope'``, ``division by zero``. It is shown with the error's kind."""


class UserError(Exception):
    """Something outside the program is wrong (config, data, model, checkpoint, cluster).

    The message is one line that names what is wrong, where, and what would be right. The command line
    prints it without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of the error's message that says something, with the one that it announces by a colon, and with
    the error's kind where the text alone says nothing."""
    lines = _lines(error)
    announced = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return _with_kind(error, " ".join(lines[: announced + 1]))


def last_line(error: BaseException) -> str:
    """The last such line: where a traceback is part of the message, the error itself."""
    return _with_kind(error, _lines(error)[-1])


def all_lines(error: BaseException) -> str:
    """All that the error says: some name the field in one line and what is wrong with it in the next."""
    return _with_kind(error, " ".join(" ".join(_lines(error)).split()))


def named(error: BaseException, line_of: Callable[[BaseException], str] = first_line) -> str:
    """A line of the error with its kind, whatever it says."""
    line, kind = line_of(error), type(error).__name__
    return line if line.startswith(kind) else f"{kind}: {line}"


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def _with_kind(error: BaseException, line: str) -> str:
    kind = type(error).__name__
    tells = " " in line and not isinstance(error, UNSPOKEN)
    if not (tells or isinstance(error, UserError) or line.startswith(kind)):
        line = f"{kind}: {line}"
    return line[:LONGEST_REASON]
