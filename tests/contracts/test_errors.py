"""One line of any error, whatever its message is."""

from __future__ import annotations

import pytest

from contracts.errors import LONGEST_REASON, UserError, all_lines, first_line, last_line, named


def test_the_first_and_the_last_line_that_say_something():
    error = RuntimeError("\n  what went wrong\n\n  Traceback\nValueError: why\n \n")
    assert first_line(error) == "what went wrong"
    assert last_line(error) == "ValueError: why"


@pytest.mark.parametrize("message", ["", "\n", "  \n "])
def test_an_error_without_a_message_is_named_by_its_type(message):
    assert first_line(TimeoutError(message)) == last_line(TimeoutError(message)) == "TimeoutError"


def test_a_long_line_is_cut():
    error = RuntimeError("x " * LONGEST_REASON)
    assert first_line(error) == last_line(error) == "x " * (LONGEST_REASON // 2)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("nope"), "KeyError: 'nope'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (AttributeError("to_dict"), "AttributeError: to_dict"),
        (TypeError("unsupported operand type(s) for pow()"), "TypeError: unsupported operand type(s) for pow()"),
        (AssertionError(), "AssertionError"),
        (ValueError("nope"), "ValueError: nope"),
        (ValueError("a sentence that tells"), "a sentence that tells"),
        (UserError("one"), "one"),
    ],
)
def test_what_says_nothing_by_itself_is_shown_with_its_kind(error, words):
    assert first_line(error) == last_line(error) == all_lines(error) == words


def test_a_line_that_announces_another_comes_with_it():
    assert first_line(ValueError("from one of:\n  a, b\nmore")) == "from one of: a, b"
    assert first_line(ValueError("from one of:")) == "from one of:"
    assert all_lines(ValueError("field:\n  what  is\n wrong")) == "field: what is wrong"


def test_the_kind_can_be_asked_for_and_is_there_once():
    assert named(ValueError("a sentence")) == "ValueError: a sentence"
    assert named(KeyError("x")) == "KeyError: 'x'"
    assert named(OSError("a\nb c"), last_line) == "OSError: b c"
