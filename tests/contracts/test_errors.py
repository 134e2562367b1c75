"""One line of any error, whatever its message is."""

from __future__ import annotations

import pytest

from contracts.errors import LONGEST_REASON, first_line, last_line


def test_the_first_and_the_last_line_that_say_something():
    error = RuntimeError("\n  what went wrong\n\n  Traceback\nValueError: why\n \n")
    assert first_line(error) == "what went wrong"
    assert last_line(error) == "ValueError: why"


@pytest.mark.parametrize("message", ["", "\n", "  \n "])
def test_an_error_without_a_message_is_named_by_its_type(message):
    assert first_line(TimeoutError(message)) == last_line(TimeoutError(message)) == "TimeoutError"


def test_a_long_line_is_cut():
    error = RuntimeError("x" * 2 * LONGEST_REASON)
    assert first_line(error) == last_line(error) == "x" * LONGEST_REASON
