"""A cluster that has lost nodes: waited for, then gone on with fewer ranks and actors."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.run.shrinking import NOTICED_S, fitted, wait_for_ray
from cluster.workers.room import Node

LOG = logging.getLogger("test")
WHOLE: list[Node] = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}]


class Cluster:
    """Has other nodes at each second."""

    def __init__(self, *by_second: list[Node]) -> None:
        self._by_second, self.now = by_second, 0.0

    def nodes(self) -> list[Node]:
        return self._by_second[min(int(self.now), len(self._by_second) - 1)]

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def config(fewer_after_s: float | None, **changes: Any) -> RunConfig:
    values = {
        "name": "r",
        "model": {"path": "m"},
        "data": {"path": "d"},
        "learner": {"ranks": 4, "batch_size": 12},
        "generation": {"actors": 4},
        "recovery": {"fewer_after_s": fewer_after_s},
    }
    return RunConfig.model_validate(values | changes)


def after(run: RunConfig, cluster: Cluster) -> RunConfig:
    return fitted(run, LOG, use_gpu=True, nodes=cluster.nodes, clock=cluster.clock, sleep=cluster.sleep)


def test_the_next_attempt_waits_until_ray_knows_of_a_death_but_not_for_ever() -> None:
    for seconds, waited in ((0, 0), (25, 25), (1000, NOTICED_S)):
        cluster = Cluster(WHOLE)
        silent = lambda cluster=cluster, seconds=seconds: int(cluster.now < seconds)  # noqa: E731
        wait_for_ray(LOG, silent=silent, clock=cluster.clock, sleep=cluster.sleep)
        assert cluster.now == waited


def test_a_run_that_may_not_shrink_is_left_to_who_places_it() -> None:
    run = config(None)
    assert after(run, Cluster(WHOLE[:1])) is run


def test_nodes_that_come_back_in_time_are_waited_for() -> None:
    run, cluster = config(30.0), Cluster(WHOLE[:1], WHOLE[:1], WHOLE)
    assert after(run, cluster) is run
    assert cluster.now == 2


def test_when_they_do_not_the_run_goes_on_with_as_many_ranks_as_divide_the_batch_and_fit_beside_an_actor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster(WHOLE[:1])
    fewer = after(config(30.0), cluster)
    assert (fewer.learner.ranks, fewer.generation.actors) == (3, 1)
    assert cluster.now == 30
    assert "learner.ranks 3 of 4, generation.actors 1 of 4" in caplog.text


def test_what_fits_is_never_more_than_was_asked_for() -> None:
    run = config(0.0, learner={"ranks": 4, "batch_size": 4}, generation={"actors": 1})
    fewer = after(run, Cluster(WHOLE[:1]))
    assert (fewer.learner.ranks, fewer.generation.actors) == (2, 1)


def test_a_cluster_on_which_nothing_fits_leaves_the_config_as_it_was() -> None:
    run = config(0.0)
    assert after(run, Cluster([{"CPU": 8.0}])) is run
