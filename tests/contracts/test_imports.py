"""A user's own function by its path, and one line that says what is wrong with a path."""

from __future__ import annotations

import os.path

import pytest

from contracts.errors import UserError
from contracts.imports import import_function


def test_a_path_gives_the_function_that_it_names():
    assert import_function("os.path:join", "objective.name") is os.path.join


def test_an_error_of_the_module_itself_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "own_check.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="--check own_check:f: ZeroDivisionError: division by zero; expected"):
        import_function("own_check:f", "--check")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("os.path:no_such_function", "no attribute 'no_such_function'"),
        ("os.path", "no attribute ''"),
        (":join", "Empty module name"),
        ("", "Empty module name"),
        ("os.path:sep", "sep is a str, expected a function"),
    ],
)
def test_a_path_that_names_no_function_is_rejected_with_its_option(path, reason):
    with pytest.raises(UserError) as error:
        import_function(path, "objective.name")
    message = str(error.value)
    assert message.startswith(f"objective.name {path}: ")
    assert reason in message
    assert len(message.splitlines()) == 1
