"""Memory and disk, against what was measured and against DeepSpeed's own estimators."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.planning.memory import (
    actor_host_bytes,
    buffer_bytes,
    checkpoint_bytes,
    engine_memory,
    host_bytes,
    object_store_bytes,
    rank_host_bytes,
    rank_memory,
)
from cluster.planning.model_shape import ModelShape
from cluster.planning.workload import Workload

MIB = 2**20
BENCHMARK = ModelShape(16_908_288, 14_811_136, 16_908_288, 4_194_304, 8, 256, 1024, 8, 8, 32, 16_384)
"""Of docs/benchmarks.md, in which 64.5 MB are its weights in fp32."""
LLAMA_3_8B = ModelShape(8_030_261_248, 7_504_924_672, 8_030_261_248, 525_336_576, 32, 4096, 14_336, 32, 8, 128, 128_256)
DEMO = ModelShape(412_320, 412_320, 412_320, 36_864, 3, 96, 384, 3, 1, 32, 64)
SHORT = Workload(20_000, 10.6, 6.1, 4.0, 1.0, 1.0)
LONG = Workload(7_000, 600.0, 300.0, 250.0, 25.0, 25.0)


def config(**sections: Any) -> RunConfig:
    return validate_config({"model": {"path": "m"}, "data": {"path": "d"}} | sections, "test")


@pytest.mark.parametrize(
    ("dtype", "stage", "weights", "masters", "optimizer", "ema", "reference"),
    [
        ("float32", 0, 64.5, 0.0, 129.0, 64.5, 64.5),
        ("float32", 2, 64.5, 32.3, 64.5, 32.3, 32.3),
        ("float32", 3, 32.3, 32.3, 64.5, 32.3, 32.3),
        ("bfloat16", 2, 32.3, 32.3, 64.5, 32.3, 16.1),
        ("bfloat16", 3, 16.1, 32.3, 64.5, 32.3, 16.1),
    ],
)
def test_states_of_a_rank_are_those_that_were_measured(
    dtype: str, stage: int, weights: float, masters: float, optimizer: float, ema: float, reference: float
) -> None:
    """The table of docs/benchmarks.md, which counts the tensors of two real ranks."""
    run = config(model={"path": "m", "dtype": dtype}, learner={"ranks": 2, "zero_stage": stage})
    found = rank_memory(run, BENCHMARK, 2)
    kinds = (found.weights, found.masters, found.optimizer, found.ema, found.reference)
    expected = (weights, masters, optimizer, ema, reference)
    assert [size / MIB for size in kinds] == pytest.approx(expected, abs=0.06)


@pytest.mark.contract
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("gpus", [2, 8])
def test_states_are_near_deepspeed_s_own_estimate(stage: int, gpus: int) -> None:
    """DeepSpeed counts 18 bytes of sharded states a parameter where ours, without gradients in bf16, are 16."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    parameters, largest = LLAMA_3_8B.parameters, LLAMA_3_8B.largest
    if stage == 2:
        _, estimate = zero2(parameters, gpus, cpu_offload=False)
    else:
        _, estimate, _ = zero3(parameters, largest, gpus, cpu_offload=False, cpu_offload_params=False)
        estimate -= 4 * largest  # gathered, which is counted apart here
    run = config(learner={"ranks": gpus, "zero_stage": stage, "batch_size": 32})
    found = rank_memory(run, LLAMA_3_8B, gpus)
    ours = found.weights + found.masters + found.optimizer + found.gradients
    assert ours == pytest.approx(estimate, rel=0.12)


def test_adapters_take_states_and_the_start_needs_no_reference() -> None:
    """Measured: 1.3 MB of masters, 2.7 of Adam, no reference."""
    shape = ModelShape(16_908_288, 14_811_136, 2 * 340_787, 4_194_304, 8, 256, 1024, 8, 8, 32, 16_384)
    run = config(model={"path": "m", "lora": {}}, learner={"ranks": 2, "zero_stage": 3})
    found = rank_memory(run, shape, 2)
    assert (found.masters / MIB, found.optimizer / MIB) == pytest.approx((1.3, 2.6), abs=0.05)
    assert found.reference == 0


def test_offloading_moves_states_and_nothing_else() -> None:
    here = rank_memory(config(learner={"zero_stage": 3}), LLAMA_3_8B, 4)
    there = rank_memory(config(learner={"zero_stage": 3, "offload_optimizer": True}), LLAMA_3_8B, 4)
    assert there.total == here.total
    assert (here.on_host, there.on_host) == (0, here.states)
    assert there.on_device == here.on_device - here.states


def test_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    plain = rank_memory(config(), LLAMA_3_8B, 4)
    saving = rank_memory(config(model={"path": "m", "gradient_checkpointing": True}), LLAMA_3_8B, 4)
    inputs = 32 * 16_384 * 2 * 4096
    assert saving.activations == pytest.approx(plain.activations / 32 + inputs)


def test_a_row_is_no_longer_than_a_rank_s_share_of_a_batch() -> None:
    run = config(learner={"batch_size": 16, "ranks": 4}, generation={"segment_length": 250})
    full, few = rank_memory(run, LLAMA_3_8B, 4), rank_memory(run, LLAMA_3_8B, 4, LONG)
    assert few.activations == pytest.approx(full.activations * 4 * (600 + 300 + 250 + 25) / 16_384)
    assert rank_memory(run, LLAMA_3_8B, 1, LONG).activations == full.activations  # 18,800 tokens do not fit a row


def test_a_key_and_a_value_of_every_layer_are_kept_for_a_token() -> None:
    engine = engine_memory(config(), LLAMA_3_8B, LONG, 80 * 2**30)
    assert engine.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072
    assert engine.concurrency == 64
    assert engine.total == pytest.approx(0.9 * 80 * 2**30)


def test_a_cache_that_is_small_bounds_the_requests() -> None:
    """In gibibytes: 16 for 15 of weights leaves none; a given cache holds what it holds."""
    assert engine_memory(config(), LLAMA_3_8B, LONG, 16 * 2**30).concurrency == 0
    given = config(generation={"kv_cache_bytes": 10 * 875 * 131_072})
    assert engine_memory(given, LLAMA_3_8B, LONG, 80 * 2**30).concurrency == 10


def test_a_process_on_cpu_takes_what_was_measured() -> None:
    """``python -m benchmarks.plan``: peaks in GiB of runs of two sizes, whose lengths are these."""
    lengths = Workload(2000, 161.1, 161.2, 59.9, 50.7, 50.7, spread=200.0)
    small = ModelShape(2_426_624, 2_426_624, 2_426_624, 180_224, 3, 256, 704, 8, 8, 32, 64)
    larger = ModelShape(10_646_016, 10_646_016, 10_646_016, 393_216, 6, 384, 1024, 6, 6, 64, 64)
    run = config(
        model={"path": "m", "dtype": "float32"},
        learner={"batch_size": 8, "tokens_per_batch": 8192, "zero_stage": 2},
        generation={"segment_length": 64, "max_concurrent_requests": 16},
    )
    for shape, rank, actor in ((small, 1.03, 1.04), (larger, 2.19, 1.12)):
        assert rank_host_bytes(run, shape, lengths, use_gpu=False) / 2**30 == pytest.approx(rank, rel=0.2)
        assert actor_host_bytes(run, shape, lengths, use_gpu=False) / 2**30 == pytest.approx(actor, rel=0.2)


def test_parts_of_an_engine_share_weights_and_heads() -> None:
    whole = engine_memory(config(), LLAMA_3_8B, LONG, 80 * 2**30)
    quarter = engine_memory(config(generation={"tensor_parallel": 4}), LLAMA_3_8B, LONG, 80 * 2**30)
    beyond = engine_memory(config(generation={"tensor_parallel": 16}), LLAMA_3_8B, LONG, 80 * 2**30)
    assert quarter.weights == whole.weights / 4
    assert quarter.kv_bytes_per_token == whole.kv_bytes_per_token / 4
    assert beyond.kv_bytes_per_token == whole.kv_bytes_per_token / 8


@pytest.mark.parametrize(
    ("sections", "measured"),
    [
        # Files of the demo's checkpoints: policy and EMA, a file for each of two ranks, the buffer's shards.
        (
            {
                "learner": {"ranks": 2, "zero_stage": 2},
                "objective": {"name": "orpo"},
                "reference": {"mode": "none"},
            },
            2 * 1_652_304 + 2 * 3_304_116 + 187_084 + 183_248,
        ),
        (
            {
                "method": "sft",
                "learner": {"ranks": 2},
                "objective": {"name": "sft"},
                "reference": {"mode": "none"},
            },
            2 * 1_652_304 + 2 * 6_614_164,
        ),
    ],
)
def test_a_checkpoint_takes_what_the_demo_s_took(sections: dict[str, Any], measured: int) -> None:
    run = config(model={"path": "m", "dtype": "float32"}, **sections)
    assert checkpoint_bytes(run, DEMO, SHORT, 2) == pytest.approx(measured, rel=0.03)


def test_a_full_buffer_takes_what_the_demo_s_took() -> None:
    assert buffer_bytes(config(), SHORT) == pytest.approx(187_084 + 183_248, rel=0.1)


def test_a_node_holds_its_processes_the_model_that_each_rank_loads_and_the_dataset() -> None:
    run = config(learner={"ranks": 4, "zero_stage": 3}, checkpoint={"background": False})
    one, two = (host_bytes(run, LLAMA_3_8B, LONG, ranks, 0, use_gpu=True) for ranks in (1, 2))
    assert two - one == 3 * 2**30 + 2 * LLAMA_3_8B.parameters
    store = object_store_bytes(run, LONG)
    assert store is not None
    assert store == pytest.approx(7000 * 900 * 4, rel=0.05)
    assert object_store_bytes(run, Workload(None, 1, 1, 1, 0, 0)) is None


def test_a_checkpoint_in_the_background_takes_host_memory_for_policy_ema_and_the_states_of_every_rank() -> None:
    ranks = {"ranks": 4, "zero_stage": 3}
    beside, at_once = (
        host_bytes(config(learner=ranks, checkpoint={"background": background}), LLAMA_3_8B, LONG, 4, 0, use_gpu=True)
        for background in (True, False)
    )
    # fp32: master, two of AdamW, EMA. bfloat16: policy, EMA, reference; loading needs it on each of 4 ranks.
    assert beside - at_once == pytest.approx((4 + 8 + 4 + 2 + 2 * 2 - 4 * 2) * LLAMA_3_8B.parameters)
