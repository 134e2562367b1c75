"""Whole SAPO runs on one GPU, learner and engine in turn: SmolLM2, and random models of larger shapes with adapters."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.conversations import Lengths, write_rows
from benchmarks.gpu.scale import ARCHITECTURES, Figure, Scale
from benchmarks.models import with_random_weights
from benchmarks.report import RESULTS
from demo.model import write_model
from demo.smollm2 import missing_packages
from demo.smollm2 import write_model as write_smollm2

WITH_ADAPTERS = ("8B",)
"""Shapes whose optimizer states would not fit beside the weights."""
ROWS = 200


def measure(scale: Scale) -> Iterator[Figure]:
    """One figure a model."""
    for model in scale.runs:
        yield _measure(scale, model)


def _measure(scale: Scale, model: str) -> Figure:
    if model == "smollm2" and (missing := missing_packages()):
        return Figure("run", model, "", note=f"left out: {', '.join(missing)} is not installed (make real-model)")
    prompt, response, segment = map(int, scale.pair_shape.split("/"))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        lengths = Lengths(prompt / 2, response, 0.3, longest_prompt=prompt, longest=prompt + response, segment=segment)
        write_rows(lengths, ROWS, folder / "rows.jsonl")
        if model == "smollm2":
            write_smollm2(folder / "model")
        else:
            write_model(folder / "model")
            with_random_weights(folder / "model", scale.dtype, scale.device, **ARCHITECTURES[model].changes())
        path = folder / "run.yaml"
        path.write_text(json.dumps(config(scale, model, lengths, folder)))  # which is YAML, too
        command = [sys.executable, "-m", "cluster", "train", str(path)]
        said = RESULTS / f"gpu-run-{model}.log"  # stays, also when the section's time is over
        with said.open("w") as file:
            done = subprocess.run(command, stdout=file, stderr=file, text=True, check=False, env=os.environ.copy())
        if done.returncode:
            reason = next((line for line in reversed(said.read_text().splitlines()) if line.strip()), "no word")
            return Figure("run", model, scale.pair_shape, note=f"failed: {reason.strip()}")
        lines = (folder / "runs" / "bench" / "metrics.jsonl").read_text().splitlines()
    return figure(model, scale.pair_shape, scale.pairs, [json.loads(line) for line in lines])


def config(scale: Scale, model: str, lengths: Lengths, folder: Path) -> dict[str, Any]:
    """Of a colocated run in lockstep."""
    adapters = {"lora": {"rank": 16, "alpha": 32}} if model in WITH_ADAPTERS else {}
    return {
        "name": "bench",
        "output_dir": str(folder / "runs"),
        "method": "sapo",
        "model": {
            "path": str(folder / "model"),
            "dtype": scale.dtype,
            "gradient_checkpointing": True,
        }
        | adapters,
        "data": {
            "path": str(folder / "rows.jsonl"),
            "max_length": lengths.longest,
            "max_prompt_length": lengths.longest_prompt,
        },
        "objective": {"name": "dpo", "beta": 0.1},
        "reference": {"mode": "initial"},
        "generation": {"segment_length": lengths.segment, "max_concurrent_requests": 64},
        "buffer": {"capacity": 256},
        "optimizer": {"name": "rmsprop", "lr": 1e-6, "schedule": "constant", "warmup_steps": 0},
        "learner": {
            "ranks": 1,
            "zero_stage": 2,
            "batch_size": scale.pairs,
            "steps": scale.run_steps,
            "tokens_per_batch": max(8192, lengths.longest),
        },
        "weights": {"max_staleness": 0, "parity_every": 2},
        "cluster": {"colocate": True},
        "logging": {"tensorboard": False, "samples_every": 0},
    }


def figure(model: str, shape: str, pairs: int, metrics: list[dict[str, float]]) -> Figure:
    """The steps after the first, which compiles and warms up."""
    warm = metrics[1:] or metrics
    step_s, train_s, publish_s, drawn_s = (
        statistics.mean(step.get(name, 0.0) for step in warm)
        for name in ("time/step_s", "time/train_s", "time/publish_s", "time/draw_wait_s")
    )
    note = (
        f"{len(metrics)} steps; of a step {train_s:.1f} s training, {drawn_s:.1f} s generation, {publish_s:.1f} s "
        f"publication; loss {metrics[-1]['loss']:.3f}"
    )
    return Figure("run", model, shape, pairs_per_s=pairs / step_s, seconds=step_s, note=note)
