"""Whole runs in bfloat16 on GPUs: learner and engine in turn on one, apart on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config.loading import validate_config
from cluster.run.train import RunResult, train
from demo.docstrings import write_rows

GPU_SHARE, CACHE_BYTES = 0.15, 256 << 20
"""Of one engine: several tests share a GPU. With a cache of known size vLLM does not measure what is free."""
COMPARED = {"loss", "grad_norm", "rewards/margins"}


def run(values: dict[str, Any], output: Path, name: str = "gpu", **changes: Any) -> RunResult:
    values = values | {"name": name, "output_dir": str(output)}
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
    return train(validate_config(values, "test"))


def metrics(result: RunResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]


def small(task: Path) -> dict[str, Any]:
    """Three steps of a tiny model."""
    return {
        "deterministic": False,
        "model": {"path": str(task / "model"), "dtype": "bfloat16"},
        "data": {"path": str(task / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "objective": {"name": "dpo"},
        "reference": {"mode": "initial"},
        "generation": {
            "segment_length": 3,
            "max_concurrent_requests": 16,
            "enforce_eager": True,
            "gpu_memory_utilization": GPU_SHARE,
            "kv_cache_bytes": CACHE_BYTES,
        },
        "buffer": {"capacity": 24},
        "optimizer": {"lr": 1e-4, "warmup_steps": 0},
        "learner": {"ranks": 1, "zero_stage": 2, "batch_size": 8, "steps": 3, "tokens_per_batch": 256},
        "weights": {"max_staleness": 0, "parity_every": 1},
    }


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "changes"),
    [
        (1, {"cluster": {"colocate": True}}),
        (1, {"cluster": {"colocate": True}, "learner": {"zero_stage": 3}}),
        (1, {"cluster": {"colocate": True}, "weights": {"backend": "ipc"}}),
        (1, {"cluster": {"colocate": True}, "model": {"dtype": "float32"}}),
        (1, {"cluster": {"colocate": True}, "model": {"lora": {"rank": 4, "alpha": 8.0}}}),
        (2, {"weights": {"max_staleness": 1}}),
        (2, {"cluster": {"colocate": True}, "learner": {"ranks": 2}, "generation": {"actors": 2}}),
    ],
    ids=[
        "in turns",
        "in turns, ZeRO 3",
        "in turns over IPC",
        "in turns, fp32",
        "in turns, adapters",
        "apart over NCCL",
        "two in turns",
    ],
)
def test_a_run_on_gpus_trains_and_passes_the_parity_check(ray_local, task, tmp_path: Path, gpus: int, changes: Any):
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    result = run(small(task), tmp_path, **changes)
    steps = metrics(result)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert "weights/parity_mean_nats" in steps[-1] or "weights/parity_mean_nats" in steps[-2]
    assert "failed" not in (result.folder / "run.log").read_text()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_the_optimizer_on_the_host_takes_the_steps_that_it_takes_on_the_gpu(ray_local, task, tmp_path: Path, stage):
    """But for rounding: bf16 products on the GPU, fp32 states on either side."""
    losses = []
    for offload in (False, True):
        changes: dict[str, Any] = {
            "method": "sft",
            "objective": {"name": "sft"},
            "reference": {"mode": "none"},
            "generation": {},
            "learner": {"zero_stage": stage, "offload_optimizer": offload},
        }
        losses.append([step["loss"] for step in metrics(run(small(task), tmp_path, f"offload-{offload}", **changes))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.gpu
@pytest.mark.slow
def test_two_deterministic_runs_are_the_same_bit_for_bit(ray_local, task, tmp_path: Path):
    """Each with an engine of its own, so that requests meet in other batches."""
    values = small(task) | {"deterministic": True, "cluster": {"colocate": True}}
    found = []
    for name, requests in (("one", 16), ("two", 5)):
        result = run(values, tmp_path, name, generation={"max_concurrent_requests": requests})
        found.append([{k: v for k, v in step.items() if k in COMPARED} for step in metrics(result)])
        assert found[-1][-1].keys() == COMPARED
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.slow
def test_a_real_model_passes_thirty_parity_checks_on_a_gpu(ray_local, smollm2, tmp_path: Path):
    """SmolLM2-135M on docstrings: no actor is replaced, and the margin grows."""
    write_rows(tmp_path / "train.jsonl", 0)
    values = small(Path(smollm2)) | {
        "model": {"path": smollm2, "dtype": "bfloat16"},
        "data": {"path": str(tmp_path / "train.jsonl"), "max_length": 256, "max_prompt_length": 128},
        "cluster": {"colocate": True},
    }
    result = run(
        values,
        tmp_path,
        generation={"segment_length": 32, "max_concurrent_requests": 64, "kv_cache_bytes": 2 << 30},
        optimizer={"name": "rmsprop", "lr": 1e-6, "schedule": "constant"},
        buffer={"capacity": 64},
        learner={"batch_size": 16, "steps": 30, "tokens_per_batch": 8192},
    )
    steps = metrics(result)
    assert len(steps) == 30
    checks = [step["weights/parity_mean_nats"] for step in steps if "weights/parity_mean_nats" in step]
    print("parity, mean nats per token:", checks)
    assert len(checks) >= 29
    assert max(checks) < 0.1
    events = (result.folder / "events.jsonl").read_text()
    assert "replaced" not in events and "failed" not in events
