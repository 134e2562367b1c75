"""Time of a step: limits that anyone can compute, and a run that was measured."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.planning.model_shape import ModelShape
from cluster.planning.throughput import (
    DEVICES,
    Calibration,
    Device,
    StepTime,
    flops_per_token,
    generation_seconds,
    learner_seconds,
    step_time,
)
from cluster.planning.workload import Workload

IDEAL = Device("ideal", 1e15, inf, inf, pass_s=0.0, engine_step_s=0.0, request_s=0.0)
SHAPE = ModelShape(1_000_000, 900_000, 1_000_000, 100_000, 4, 64, 256, 4, 2, 16, 1000)
DEMO = ModelShape(412_320, 412_320, 412_320, 36_864, 3, 96, 384, 3, 1, 32, 64)
LONG = Workload(7_000, 600.0, 300.0, 250.0, 25.0, 25.0)
ORPO: dict[str, Any] = {"objective": {"name": "orpo"}, "reference": {"mode": "none"}}


def config(**sections: Any) -> RunConfig:
    return validate_config({"model": {"path": "m"}, "data": {"path": "d"}} | sections, "test")


def test_a_token_costs_two_operations_a_weight_and_its_attention() -> None:
    # Queries times keys and weights times values: 2 · 2 · heads · size for each of 450 earlier tokens, in 4 layers.
    assert flops_per_token(SHAPE, 900) == 2 * 900_000 + 4 * (2 * 2 * 4 * 16 * 450)


def test_without_other_costs_a_step_is_three_passes_over_the_tokens() -> None:
    tokens = 32 * (600 + 300 + 250 + 25)
    expected = 3 * tokens * flops_per_token(SHAPE, 900) / 1e15
    assert learner_seconds(config(**ORPO), SHAPE, LONG, IDEAL, 1) == pytest.approx(expected)
    assert learner_seconds(config(**ORPO), SHAPE, LONG, IDEAL, 4) == pytest.approx(expected / 4)
    assert learner_seconds(config(), SHAPE, LONG, IDEAL, 1) == pytest.approx(expected * 4 / 3)  # with a reference
    saving = config(**ORPO, model={"path": "m", "gradient_checkpointing": True})
    assert learner_seconds(saving, SHAPE, LONG, IDEAL, 1) == pytest.approx(expected * 4 / 3)


def test_an_engine_that_only_reads_weights_gives_a_token_to_each_request_a_reading() -> None:
    device = replace(IDEAL, flops=inf, memory_bytes_per_s=2e9)
    shape = replace(SHAPE, kv_heads=0)
    run = config(generation={"max_concurrent_requests": 16, "kv_cache_bytes": 1 << 30})
    readings = 32 * 250 / 16
    assert generation_seconds(run, replace(shape, kv_heads=1), LONG, device, 80 * 2**30) > readings * 1e6 * 2 / 2e9
    assert generation_seconds(run, SHAPE, LONG, replace(device, memory_bytes_per_s=inf), 80 * 2**30) == 0


def test_an_engine_without_room_never_ends() -> None:
    run = config(generation={"kv_cache_bytes": 1})
    assert generation_seconds(run, SHAPE, LONG, IDEAL, 80 * 2**30) == inf


def test_overlapped_the_slower_side_decides_and_in_lockstep_both() -> None:
    both = StepTime(3.0, 0.5, 2.0, 0.5, overlapped=False)
    assert both.total_s == 6.0
    assert both.learner_idle == pytest.approx(1 / 3)
    assert both.actors_idle == pytest.approx(2 / 3)
    side = replace(both, overlapped=True)
    assert (side.total_s, side.learner_idle, side.actors_idle) == (4.0, 0.0, 0.5)
    assert replace(side, generation_s=8.0).learner_idle == 0.5


def test_more_actors_divide_generation_and_none_never_end() -> None:
    run = config(weights={"max_staleness": 2})
    one, four, none = (step_time(run, SHAPE, LONG, DEVICES["h100"], 80 * 2**30, 1, n) for n in (1, 4, 0))
    assert four.generation_s == one.generation_s / 4
    assert none.total_s == inf
    supervised = config(method="sft", objective={"name": "sft"}, reference={"mode": "none"})
    assert step_time(supervised, SHAPE, LONG, DEVICES["h100"], 80 * 2**30, 1, 0).generation_s == 0


def test_the_demo_without_a_calibration_is_within_a_third_of_what_was_measured() -> None:
    """docs/benchmarks.md: overlapped, 221 pairs a second on two cores."""
    run = config(
        **ORPO,
        model={"path": "m", "dtype": "float32"},
        learner={"ranks": 2, "zero_stage": 2, "batch_size": 32, "tokens_per_batch": 2048},
        generation={"segment_length": 4},
        weights={"max_staleness": 2},
    )
    workload = Workload(20_000, 10.6, 6.1, 4.0, 1.0, 1.0)
    found = 32 / step_time(run, DEMO, workload, DEVICES["cpu"], None, 2, 1).total_s
    assert found == pytest.approx(221, rel=0.33)


def test_a_calibration_multiplies_each_part() -> None:
    run = config()
    plain = step_time(run, SHAPE, LONG, DEVICES["a100"], 80 * 2**30, 2, 2)
    twice = step_time(run, SHAPE, LONG, DEVICES["a100"], 80 * 2**30, 2, 2, Calibration(2.0, 3.0, 4.0, 0.5))
    assert twice.learner_s == pytest.approx(2 * plain.learner_s)
    assert twice.generation_s == pytest.approx(3 * plain.generation_s)
    assert twice.publication_s == pytest.approx(4 * plain.publication_s)
    assert twice.rest_s == 0.5
