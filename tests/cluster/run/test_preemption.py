"""A node that is announced to leave makes a checkpoint due, once."""

from __future__ import annotations

import logging

import pytest

from cluster.run.preemption import Preemption, draining_nodes


def test_each_node_that_leaves_makes_one_checkpoint_due(caplog: pytest.LogCaptureFixture) -> None:
    now, draining, asked = 1000.0, dict[str, float](), list[float]()

    def told() -> dict[str, float]:
        asked.append(now)
        return draining

    preemption = Preemption(logging.getLogger("test"), told, lambda: now)
    due = []
    for now, draining in (  # noqa: B007  # they are read by what preemption asks
        (1000.0, {}),
        (1001.0, {"0123456789ab": 1031.0}),  # Ray was asked a second ago
        (1006.0, {"0123456789ab": 1031.0}),
        (1012.0, {"0123456789ab": 1031.0}),
        (1018.0, {"0123456789ab": 1031.0, "cd": 0.0}),
        (1024.0, {}),
    ):
        due.append(preemption.checkpoint_due())
    assert due == [False, False, True, False, True, False]
    assert asked == [1000.0, 1006.0, 1012.0, 1018.0, 1024.0]
    assert [record.getMessage() for record in caplog.records] == [
        "node 01234567 leaves in 25 s: a checkpoint is written before",
        "node cd leaves soon: a checkpoint is written before",
    ]


@pytest.mark.slow
@pytest.mark.contract
def test_ray_says_which_nodes_leave(ray_local: None) -> None:
    assert draining_nodes() == {}
