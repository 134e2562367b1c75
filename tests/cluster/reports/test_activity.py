"""What a driver does now is known, and each phase of a start is said with its time."""

from __future__ import annotations

import io
import logging
import time

import pytest
from rich.console import Console

from cluster.reports import activity as module
from cluster.reports.activity import Activity


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def test_what_is_done_within_something_ends_with_what_it_is_within():
    now = 10.0
    activity = Activity(logging.getLogger("run"), quiet(), clock=lambda: now)
    seen = [activity.now.what]
    with activity.doing("draw"):
        now = 20.0
        with activity.doing("wait for weights"):
            seen.append(f"{activity.now.what} {activity.now.since}")
        seen.append(f"{activity.now.what} {activity.now.since}")
    seen.append(activity.now.what)
    assert seen == ["start", "wait for weights 20.0", "draw 10.0", "start"]


def test_an_error_does_not_leave_the_driver_at_what_failed():
    activity = Activity(logging.getLogger("run"), quiet())
    with pytest.raises(OSError), activity.doing("checkpoint"):
        raise OSError
    assert activity.now.what == "start"


def test_a_phase_is_a_line_with_its_seconds_and_a_short_one_is_for_the_file_alone(caplog):
    caplog.set_level(logging.DEBUG)
    now = 0.0
    activity = Activity(logging.getLogger("run"), quiet(), clock=lambda: now)
    with activity.phase("ranks meet"):
        now = 2.5
    with activity.phase("placing"):
        now = 2.6
    said = [(record.levelname, record.getMessage(), vars(record)["event"]) for record in caplog.records]
    assert said == [("INFO", "ranks meet: 2.5 s", "phase"), ("DEBUG", "placing: 0.1 s", "phase")]


def test_a_long_phase_is_not_silent_where_there_is_no_terminal(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "STILL_S", (0.01, 10.0))
    with Activity(logging.getLogger("run"), quiet()).phase("engines load"):
        limit = time.monotonic() + 10
        while not caplog.records and time.monotonic() < limit:
            time.sleep(0.01)
    assert "engines load: goes on after" in caplog.records[0].getMessage()


def test_a_terminal_shows_a_phase_while_it_lasts():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Activity(logging.getLogger("run"), console).phase("ranks meet"):
        pass
    assert "ranks meet" in console.file.getvalue()  # type: ignore[attr-defined]
