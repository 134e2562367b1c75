"""What failures cost a run."""

from __future__ import annotations

import logging

import pytest

from cluster.run.callbacks import StepResult
from cluster.run.losses import Losses
from cluster.sources.base import Batch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(losses: Losses, clock: Clock, *steps: int, seconds: float = 1.0) -> None:
    for step in steps:
        clock.now += seconds
        losses.on_step(StepResult(step, Batch([]), {"time/step_s": seconds}))


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[int, float, float]]:
    found = [record.__dict__ for record in caplog.records]
    return [(each["step"], each["restart_s"], each["again_s"]) for each in found if each.get("event") == "recovered"]


def failed_after_six_steps(
    caplog: pytest.LogCaptureFixture, figures: dict[str, float] | None = None
) -> tuple[Losses, Clock]:
    """The next attempt goes on from step 4, and 30 s have passed."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    losses = Losses(logging.getLogger("losses"), ({} if figures is None else figures).update, clock)
    make(losses, clock, 1, 2, 3, 4, 5, 6)
    losses.failed(4)
    clock.now += 30.0
    return losses, clock


def test_a_failure_costs_the_wait_for_the_next_step_and_the_steps_that_are_made_again(caplog):
    figures: dict[str, float] = {}
    losses, clock = failed_after_six_steps(caplog, figures)
    make(losses, clock, 5, 6, 7)
    assert events(caplog) == [(5, 31.0, 2.0)]
    assert losses.total_s == 33.0
    assert figures == {"run/lost_s": 33.0}


def test_an_attempt_that_fails_before_it_makes_a_step_is_part_of_the_same_loss(caplog):
    losses, clock = failed_after_six_steps(caplog)
    losses.failed(0)  # and the checkpoint is damaged
    clock.now += 20.0
    make(losses, clock, 1)
    assert events(caplog) == [(1, 51.0, 6.0)]


def test_a_run_without_failures_says_nothing(caplog):
    clock = Clock()
    figures: dict[str, float] = {}
    losses = Losses(logging.getLogger("losses"), figures.update, clock)
    make(losses, clock, 1, 2, 3)
    assert not events(caplog) and losses.total_s == 0.0
    assert figures == {"run/lost_s": 0.0}
