"""Seconds and bytes per second of a publication into a running engine, against a memcpy of the same bytes.

    python -m benchmarks.publication [--sizes 3M 30M 110M] [--rounds 5]

Staged: the learner's copy into shared memory with its checksums (what holds up training, beside the gather). Sent: the
engine pauses, verifies every byte, loads, and goes on. Packed: ``generation.packed_weights``; unpacked: without. fp32,
one machine, backend ``shm``, the run's own settings of the C library. Memcpy: the C library's, by one thread.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import EngineSpec, Work
from actors.plan import Plan
from actors.token_table import TokenTable
from benchmarks.models import SHAPES, write_llama
from benchmarks.report import machine, save, table_of
from cluster.weights.publisher_spec import PublisherSpec
from cluster.workers.resources import LARGE_BLOCKS
from learner.zero.weights import metadata, named_layers

VOCABULARY = 8192


def measure(size: str, packed: bool, rounds: int, folder: Path) -> dict[str, Any]:
    model = write_llama(folder, size, VOCABULARY)
    engine = EngineSpec(model, "float32", max_length=256, ends=(2,), seed=0, backend="shm", use_gpu=False)
    nothing = Work(Plan(0, np.zeros(0, np.int32), 8, 1), TokenTable.empty())
    actor = (
        ray.remote(GenerationActor)
        .options(num_cpus=0, max_concurrency=100, runtime_env={"env_vars": LARGE_BLOCKS})
        .remote("actor-0", engine, GenerationConfig(packed_weights=packed), nothing, None)
    )
    ray.get(actor.ready.remote())
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    layers, announced = list(named_layers(module, zero_stage=0)), metadata(module)
    source = torch.cat([weight.detach().flatten() for layer in layers for _, weight in layer]).view(torch.uint8)
    target = torch.empty_like(source)
    publisher = PublisherSpec("shm", timeout_s=120).build()
    publisher.retarget({"actor-0": actor})
    seconds: dict[str, list[float]] = {"memcpy": [], "stage": [], "send": []}
    for version in range(rounds + 2):  # two warm-ups: both slots are mapped then
        started = time.perf_counter()
        ctypes.memmove(target.data_ptr(), source.data_ptr(), len(source))
        copied = time.perf_counter()
        publisher.stage(version, announced, layers)
        staged = time.perf_counter()
        (ack,) = publisher.send()
        sent = time.perf_counter()
        assert not ack.error, ack
        if version >= 2:
            for name, value in (("memcpy", copied - started), ("stage", staged - copied), ("send", sent - staged)):
                seconds[name].append(value)
    publisher.shutdown()
    ray.kill(actor)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole = medians["stage"] + medians["send"]
    ratios = [(a + b) / c for a, b, c in zip(seconds["stage"], seconds["send"], seconds["memcpy"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "bytes": len(source),
        "seconds": seconds,
        "median": medians,
        "bytes_per_s": len(source) / whole,
        "over_memcpy": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["3M", "30M", "110M"], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not LARGE_BLOCKS.items() <= os.environ.items():  # as in a learner's rank; read when a process starts
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.publication", *sys.argv[1:]], os.environ | LARGE_BLOCKS
        )
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            f"{size}, {'packed' if packed else 'unpacked'}": measure(size, packed, arguments.rounds, Path(folder))
            for size in arguments.sizes
            for packed in (True, False)
        }
    head = [
        "parameters",
        "engine's weights",
        "MB",
        "memcpy s",
        "staged s",
        "sent s",
        "GB/s",
        "stage + send over memcpy",
    ]
    rows = [
        [
            f"{r['parameters'] / 1e6:.0f} M",
            name.split(", ")[1],
            f"{r['bytes'] / 1e6:.0f}",
            *(f"{r['median'][part]:.3f}" for part in ("memcpy", "stage", "send")),
            f"{r['bytes_per_s'] / 1e9:.2f}",
            f"{r['over_memcpy']:.1f}",
        ]
        for name, r in results.items()
    ]
    print(table_of(head, rows))
    save("publication", {"machine": machine(), "backend": "shm", "results": results})
    ray.shutdown()


if __name__ == "__main__":
    main()
