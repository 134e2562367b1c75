"""Lines that a reader of JSON can read, whatever the run died on."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.storage.json_lines import JsonLines, drop_lines_after, read_lines
from contracts.errors import UserError


@pytest.mark.parametrize("step", [1, 5])
def test_on_a_full_disk_nothing_is_lost(tmp_path: Path, monkeypatch, step: int):
    """And where nothing is dropped nothing is written."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = pytest.raises(UserError, match=r"metrics.jsonl: can't be written: No space left")
    with refused if step == 1 else nullcontext():
        drop_lines_after(path, step)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "l.jsonl")
    lines.write({"step": 1, "text": "é"})
    assert (tmp_path / "l.jsonl").read_text(encoding="utf-8") == '{"step": 1, "text": "é"}\n'


def test_a_line_that_was_being_written_when_the_run_died_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    drop_lines_after(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_where_no_file_is_none_is_made(tmp_path: Path) -> None:
    drop_lines_after(tmp_path / "none.jsonl", 5)
    assert not (tmp_path / "none.jsonl").exists()


def test_lines_hold_no_value_that_json_does_not_know(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="Out of range"):
        lines.write({"step": 1, "loss": float("nan")})


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room_again(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # room for a line and a half
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                lines.write({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines.write({"step": 4})
    assert [step for step, _ in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
