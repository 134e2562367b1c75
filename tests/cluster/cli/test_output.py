"""Tables and lines of commands say what users' files and paths say, at any length."""

from __future__ import annotations

import pytest
from rich.table import Table

from cluster.cli.output import COLUMNS, Output


def test_brackets_are_text_and_a_line_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    output, long = Output(), "runs/a[red] " + "word " * COLUMNS
    output.write_line(long, style="bold red")
    table = Table("model")
    table.add_row("runs/a[bold]b[/]")
    output.print(table)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == long
    assert "runs/a[bold]b[/]" in said
