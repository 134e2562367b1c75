"""Attempts as events tell them."""

from __future__ import annotations

from typing import Any

from cluster.reports.page.figures import timeline_figure
from cluster.reports.page.run_record import Event
from cluster.reports.page.timeline import attempts


def told(*moments: tuple[float, str]) -> list[tuple[Any, ...]]:
    found = attempts([Event(time, kind, kind, {}) for time, kind in moments])
    return [(a.label, a.start, a.end, a.outcome) for a in found]


def test_a_failed_attempt_is_followed_by_the_next() -> None:
    assert told((0, "started"), (5, "checkpoint"), (9, "attempt failed"), (20, "complete")) == [
        ("attempt 1", 0, 9, "attempt failed"),
        ("attempt 2", 9, 20, "complete"),
    ]


def test_a_resumed_run_has_a_gap() -> None:
    assert told((0, "started"), (5, "ended"), (100, "started"), (110, "complete")) == [
        ("attempt 1", 0, 5, "ended"),
        ("attempt 2", 100, 110, "complete"),
    ]


def test_a_killed_driver_ends_with_its_last_event() -> None:
    assert told((0, "started"), (7, "checkpoint"), (99, "phase"), (100, "started"), (110, "checkpoint")) == [
        ("attempt 1", 0, 7, "killed"),
        ("attempt 2", 100, 110, "going on, or killed"),
    ]


def test_without_a_start_there_is_none() -> None:
    assert told() == told((3, "checkpoint")) == []


def test_the_phases_of_a_start_are_bars_of_their_length() -> None:
    phase = Event(20.0, "phase", "ranks meet: 2.5 s", {"phase": "ranks <meet>", "seconds": 2.5})
    figure = timeline_figure(attempts([Event(0.0, "started", "", {})]), [phase])
    bar = next(trace for trace in figure.data if trace["y"] == ["start", "start"])
    assert bar["name"] == "ranks &lt;meet>"
    assert [x.rpartition(":")[2] for x in bar["x"]] == ["17.500", "20.000"]
