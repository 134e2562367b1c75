"""Whole runs in bfloat16 on GPUs: learner and engine in turn on one, apart on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config.loading import validate_config
from cluster.run.train import train


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "changes"),
    [
        (1, {"cluster": {"colocate": True}}),
        (1, {"cluster": {"colocate": True}, "learner": {"zero_stage": 3}}),
        (1, {"cluster": {"colocate": True}, "weights": {"backend": "ipc"}}),
        (2, {"weights": {"max_staleness": 1}}),
        (2, {"cluster": {"colocate": True}, "learner": {"ranks": 2}, "generation": {"actors": 2}}),
    ],
    ids=["in turns", "in turns, ZeRO 3", "in turns over IPC", "apart over NCCL", "two in turns"],
)
def test_a_run_in_bfloat16_trains_and_passes_the_parity_check(ray_local, task, tmp_path: Path, gpus: int, changes: Any):
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    values: dict[str, Any] = {
        "name": "gpu",
        "output_dir": str(tmp_path),
        "deterministic": False,
        "model": {"path": str(task / "model"), "dtype": "bfloat16"},
        "data": {"path": str(task / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "objective": {"name": "dpo"},
        "reference": {"mode": "initial"},
        "generation": {"segment_length": 3, "max_concurrent_requests": 16, "enforce_eager": True},
        "buffer": {"capacity": 24},
        "optimizer": {"lr": 1e-4, "warmup_steps": 0},
        "learner": {"ranks": 1, "zero_stage": 2, "batch_size": 8, "steps": 3, "tokens_per_batch": 256},
        "weights": {"max_staleness": 0, "parity_every": 1},
    }
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change
    result = train(validate_config(values, "test"))
    steps = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert "weights/parity_mean_nats" in steps[-1] or "weights/parity_mean_nats" in steps[-2]
    assert "failed" not in (result.folder / "run.log").read_text()
