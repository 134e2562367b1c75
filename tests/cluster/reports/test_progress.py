"""The progress line speaks of rates that are there."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rich.console import Console

from cluster.reports.progress import ProgressLine


def lines_of(
    caplog: pytest.LogCaptureFixture, *steps: tuple[int, float], total: int = 101, **figures: float
) -> list[str]:
    """What is shown of a run that goes on after its first step, by (step, seconds)."""
    caplog.set_level(logging.INFO)
    now = 0.0
    console: Any = Console(force_terminal=False)
    line = ProgressLine(console, logging.getLogger("run"), "mine", total, 1, clock=lambda: now)
    for step, seconds in steps:
        now = seconds
        line.show(step, {"loss": 0.5} | figures)
    line.close()
    return [record.getMessage() for record in caplog.records]


def test_progress_speaks_of_the_steps_after_the_first(caplog):
    assert lines_of(caplog, (2, 60.0), (3, 62.0), (51, 80.0), (101, 130.0)) == [
        "2/101  loss 0.5000",
        "51/101  loss 0.5000  2.5 steps/s  20 s left",
        "101/101  loss 0.5000  1.4 steps/s  0 s left",
    ]


def test_slow_steps_are_shown_in_seconds_a_step(caplog):
    shown = lines_of(caplog, (2, 60.0), (3, 100.0), (4, 140.0), total=6)
    assert shown[-1] == "4/6  loss 0.5000  40.0 s/step  1 min 20 s left"


def test_tokens_a_second_are_those_of_the_steps_after_the_first(caplog):
    figures = {"tokens/trained": 60_000.0}
    shown = lines_of(caplog, (2, 60.0), (3, 100.0), (4, 140.0), total=6, **figures)
    assert shown[-1] == "4/6  loss 0.5000  40.0 s/step  1,500 tokens/s  1 min 20 s left"


def test_a_loss_that_is_not_there_is_no_crash(caplog):
    caplog.set_level(logging.INFO)
    line = ProgressLine(Console(force_terminal=False), logging.getLogger("run"), "mine", 1, 0)
    line.show(1, {})
    assert [record.getMessage() for record in caplog.records] == ["1/1  loss not finite"]
