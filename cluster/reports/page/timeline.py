"""When a run's attempts began and ended, and what happened in between, from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.reports.page.run_record import Event

BEGINS = "started"
ENDS = ("attempt failed", "ended", "complete")


@dataclass(frozen=True)
class Attempt:
    """One stretch of a run with one set of learner ranks."""

    label: str
    start: float
    """Seconds since the epoch."""
    end: float
    outcome: str
    """The event that ended it; ``going on, or killed`` where none did."""


def attempts(events: Sequence[Event]) -> list[Attempt]:
    """All attempts in order. A driver that was killed writes no end: its last event stands for it."""
    found: list[Attempt] = []
    begun: float | None = None
    last = 0.0
    for event in events:
        if event.kind == BEGINS and begun is not None:
            found.append(_attempt(found, begun, last, "killed"))
            begun = None
        if event.kind == BEGINS:
            begun = event.time
        elif event.kind in ENDS and begun is not None:
            found.append(_attempt(found, begun, event.time, event.kind))
            # A failed attempt is followed by the next one; what comes after an end is a new start.
            begun = event.time if event.kind == "attempt failed" else None
        if event.kind != "phase":  # the first ones of a new start come before it is "started"
            last = event.time
    if begun is not None:
        found.append(_attempt(found, begun, last, "going on, or killed"))
    return found


def _attempt(before: Sequence[Attempt], start: float, end: float, outcome: str) -> Attempt:
    return Attempt(f"attempt {len(before) + 1}", start, end, outcome)
