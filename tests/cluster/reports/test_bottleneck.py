"""The bottleneck report names who waits for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.reports.bottleneck import Machine, Shares, bottleneck


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
    assert words in bottleneck(shares(**changes), Machine(room=9), lockstep=False)


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("changes", [{"draw_wait_s": 50.0}, {"actor_wait_s": 60.0}, {"actor_wait_s": 30.0}, {}])
def test_on_saturated_cores_no_process_more_is_advised(changes: dict[str, float], lockstep: bool) -> None:
    said = bottleneck(shares(**changes), Machine(room=9, cores=2, busy=0.97), lockstep=lockstep)
    assert "all 2 cores of the machine are busy (97%)" in said or "could go" in said
    assert "would balance" not in said and "more learner ranks" not in said and "would overlap" not in said


def test_an_actor_without_a_place_is_said_to_have_none() -> None:
    waiting = shares(draw_wait_s=50.0)
    assert "the cluster has no room for one" in bottleneck(waiting, Machine(room=0, cores=2, busy=0.5), lockstep=False)
    assert "the cluster has room for 1" in bottleneck(waiting, Machine(room=1), lockstep=False)


def test_the_report_of_lockstep_points_to_overlap() -> None:
    assert "max_staleness" in bottleneck(shares(draw_wait_s=50.0), Machine(), lockstep=True)


def test_a_stretch_is_what_came_after_another() -> None:
    start = shares(wall_s=60.0, learner_busy_s=10.0, draw_wait_s=50.0, actor_wait_s=8.0)
    end = shares(wall_s=160.0, learner_busy_s=108.0, draw_wait_s=51.0, actor_wait_s=5.0, actors=3)
    assert end - start == shares(learner_busy_s=98.0, draw_wait_s=1.0, actors=3)
