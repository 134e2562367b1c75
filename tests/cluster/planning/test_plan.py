"""Which divisions of the GPUs are considered, which fit, and which is best."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.planning.model_shape import ModelShape
from cluster.planning.plan import Machines, Plan, make_plan
from cluster.planning.throughput import DEVICES, Calibration
from cluster.planning.workload import Workload

GIB = 2**30
LLAMA_3_8B = ModelShape(8_030_261_248, 7_504_924_672, 8_030_261_248, 525_336_576, 32, 4096, 14_336, 32, 8, 128, 128_256)
LONG = Workload(7_000, 600.0, 300.0, 250.0, 25.0, 25.0)


def planned(nodes: int = 1, gpus: int = 8, gib: float = 80.0, **sections: Any) -> Plan:
    values = {
        "model": {"path": "m", "gradient_checkpointing": True},
        "data": {"path": "d"},
        "generation": {"actors": 4},
        "learner": {"ranks": 4, "zero_stage": 3, "batch_size": 64},
        "weights": {"max_staleness": 2},
    }
    machines = Machines(nodes, gpus, gib * GIB, DEVICES["h100"])
    return make_plan(validate_config(values | sections, "test"), LLAMA_3_8B, LONG, machines, Calibration())


def test_every_division_divides_the_batch_and_uses_no_more_gpus_than_there_are() -> None:
    plan = planned()
    counts = {(split.ranks, split.actors) for split in [plan.own, *plan.others]}
    assert counts <= {(1, 7), (2, 6), (4, 4)}
    assert (4, 4) in counts


def test_the_best_division_is_the_fastest_that_fits() -> None:
    plan = planned(nodes=2)
    fitting = [split for split in [plan.own, *plan.others] if not split.wrong]
    assert plan.best.step.total_s == min(split.step.total_s for split in fitting)
    # Between the sides of the best one lies at most what one more rank or actor would move.
    assert plan.best.step.total_s < plan.own.step.total_s


def test_engines_of_many_gpus_take_whole_ones_of_a_node() -> None:
    plan = planned(generation={"actors": 2, "tensor_parallel": 2})
    assert not plan.own.wrong
    assert all(split.ranks + 2 * split.actors <= 8 for split in plan.others)
    assert planned(gpus=4, generation={"actors": 1, "tensor_parallel": 8}).own.wrong == "more GPUs than there are"


def test_what_does_not_fit_says_why() -> None:
    assert planned(gpus=4).own.wrong == "more GPUs than there are"
    assert planned(gib=24).own.wrong == "a rank needs more memory than a GPU has"
    assert planned(gib=17).own.wrong == "no actor, or no request fits an engine's cache"


def test_a_run_s_length_follows_from_its_rows() -> None:
    plan = planned()
    assert plan.steps == -(-4 * 7000 // 64)
    assert plan.seconds == pytest.approx(plan.steps * plan.own.step.total_s)
    assert plan.generated_tokens == plan.steps * 64 * 250
    assert plan.trained_tokens == plan.steps * 64 * (600 + 300 + 250 + 25)


def test_a_supervised_run_has_ranks_alone() -> None:
    plan = planned(method="sft", objective={"name": "sft"}, reference={"mode": "none"})
    assert plan.engine is None
    assert {split.actors for split in [plan.own, *plan.others]} == {0}
    assert plan.best.ranks == 8


def test_one_rank_and_one_engine_that_share_a_gpu_take_turns() -> None:
    plan = planned(cluster={"colocate": True}, generation={"actors": 1}, learner={"ranks": 1}, weights={})
    assert (plan.others, plan.own.step.overlapped) == ([], False)
