"""The one error that a user is meant to read, and one line of any other."""

from __future__ import annotations

LONGEST_REASON = 300
"""Characters of a foreign error's line that are shown."""


class UserError(Exception):
    """Something outside the program is wrong (config, data, model, checkpoint, cluster).

    The message is one line that names what is wrong, where, and what would be right. The command line
    prints it without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of the error's message that says something; its type's name where there is none."""
    return _lines(error)[0][:LONGEST_REASON]


def last_line(error: BaseException) -> str:
    """The last such line: where a traceback is part of the message, the error itself."""
    return _lines(error)[-1][:LONGEST_REASON]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
