"""The bottleneck report names who waits for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.reports.bottleneck import Shares, bottleneck


def shares(**changes: Any) -> Shares:
    quiet = Shares(
        wall_s=100.0,
        learner_busy_s=90.0,
        draw_wait_s=0.0,
        weights_wait_s=0.0,
        publish_s=0.0,
        actor_wait_s=0.0,
        actors=2,
    )
    return replace(quiet, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draw_wait_s": 50.0}, "generation-bound; 2 more actor(s)"),
        ({"actor_wait_s": 30.0}, "training-bound"),
        ({"weights_wait_s": 20.0}, "raise weights.max_staleness"),
        ({"publish_s": 20.0}, "raise weights.publish_every"),
        ({}, "balanced"),
    ],
)
def test_the_report_names_who_waits(changes: dict[str, float], words: str) -> None:
    assert words in bottleneck(shares(**changes), lockstep=False)


def test_the_report_of_lockstep_points_to_overlap() -> None:
    assert "max_staleness" in bottleneck(shares(draw_wait_s=50.0), lockstep=True)


def test_a_stretch_is_what_came_after_another() -> None:
    start = shares(wall_s=60.0, learner_busy_s=10.0, draw_wait_s=50.0, actor_wait_s=8.0)
    end = shares(wall_s=160.0, learner_busy_s=108.0, draw_wait_s=51.0, actor_wait_s=5.0, actors=3)
    assert end - start == shares(learner_busy_s=98.0, draw_wait_s=1.0, actors=3)
