"""A new attempt on a cluster that has lost nodes: it waits for them, then goes on with what is left if it may."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from cluster.config.run_config import RunConfig
from cluster.workers.resources import demands, largest_division, nodes_that_answer, silent_nodes
from cluster.workers.room import Node, fits

LOOK_S = 1.0
"""Pause between two looks at the cluster."""
NOTICED_S = 60.0
"""Longest wait until Ray takes a dead node for dead, in seconds. It needs 20 to 30."""


def wait_for_ray(
    log: logging.Logger,
    *,
    silent: Callable[[], int] = silent_nodes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Until Ray knows of every death: it would place a part of the next attempt on a dead node."""
    deadline = clock() + NOTICED_S
    if count := silent():
        log.info("%d node(s) give no answer: the next attempt waits until Ray knows", count)
    while count and clock() < deadline:
        sleep(LOOK_S)
        count = silent()


def fitted(
    config: RunConfig,
    log: logging.Logger,
    *,
    use_gpu: bool,
    nodes: Callable[[], Sequence[Node]] = nodes_that_answer,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RunConfig:
    """``config``, as soon as it fits the cluster; after ``recovery.fewer_after_s`` with as many ranks and actors as do.

    Where not even one of each fits it stays what it is, and who places it says so.
    """
    wait_s = config.recovery.fewer_after_s
    if wait_s is None:
        return config
    ranks, actors = demands(config, use_gpu=use_gpu)
    deadline = clock() + wait_s
    while not fits(nodes(), ranks, actors):
        if clock() < deadline:
            sleep(LOOK_S)
            continue
        left = largest_division(config, nodes(), use_gpu=use_gpu)
        if left is None:
            return config
        count = min(left.actors, config.generation.actors) if config.method == "sapo" else config.generation.actors
        log.warning(
            "lost nodes are not back after %g s: it goes on with learner.ranks %d of %d, generation.actors %d of %d",
            wait_s,
            left.ranks,
            config.learner.ranks,
            count,
            config.generation.actors,
            extra={"event": "fewer", "ranks": left.ranks, "actors": count},
        )
        return config.model_copy(
            update={
                "learner": config.learner.model_copy(update={"ranks": left.ranks}),
                "generation": config.generation.model_copy(update={"actors": count}),
            }
        )
    return config
