"""A run folder that does not answer is said, with the call that waits for it."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from rich.console import Console

from cluster.reports.activity import Activity
from cluster.run.file_watch import FILES, FileWatch
from cluster.storage.json_lines import JsonLines


def test_it_is_said_again_and_again_while_it_lasts_and_of_files_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    now, said = 0.0, io.StringIO()
    console, log = Console(file=said), logging.getLogger("test")
    activity = Activity(log, console, clock=lambda: now)
    watch = FileWatch(activity, console, log, "demo", 60.0, clock=lambda: now)
    with activity.doing("step"):
        now = 500.0
        watch.look()
    with activity.doing(FILES):
        for later in (559.0, 561.0, 600.0, 622.0):
            now = later
            watch.look()
    now = 1000.0
    watch.look()
    where = "cluster.run.file_watch, look"  # in a run it is another thread that looks
    assert said.getvalue().splitlines() == [
        f"demo: the run folder does not answer since {seconds} s ({where}); the run waits for it"
        for seconds in (61, 122)
    ]
    assert [vars(record)["event"] for record in caplog.records] == ["files stuck"] * 2
    assert "watch.look()" in caplog.text


def test_a_write_that_hangs_is_named_by_the_thread_beside_it_and_ends_when_the_file_answers(tmp_path: Path) -> None:
    pipe, said = tmp_path / "metrics.jsonl", io.StringIO()
    os.mkfifo(pipe)
    console, log = Console(file=said), logging.getLogger("test")
    activity = Activity(log, console)
    watch = FileWatch(activity, console, log, "demo", 0.05)
    read: list[str] = []

    def read_when_it_was_said() -> None:
        while "does not answer" not in said.getvalue():
            threading.Event().wait(0.01)
        read.append(pipe.read_text())

    reader = threading.Thread(target=read_when_it_was_said, daemon=True)
    reader.start()
    watch.start()
    try:
        with activity.doing(FILES):
            lines = JsonLines(pipe)
            lines.write({"step": 1})
            lines.close()
    finally:
        watch.close()
    reader.join(10)
    assert [json.loads(line) for line in read] == [{"step": 1}]
    assert "(cluster.storage.appended, write)" in said.getvalue()
