"""Bytes per second of a publication into a running engine, by backend: the copy out of the learner, then the transfer.

On one GPU, sender and engine share it, over CUDA IPC and over shared memory; with two, NCCL is measured as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.config import GenerationConfig
from actors.messages import Backend, Work
from actors.plan import Plan
from actors.token_table import TokenTable
from benchmarks.gpu.actors import start, write
from benchmarks.gpu.scale import Figure, Scale
from cluster.weights.publisher_spec import PublisherSpec
from contracts.errors import first_line

TIMEOUT_S = 60.0


class Sender:
    """A learner rank's end, with the model on the device."""

    def __init__(self, model: str, scale: Scale, backend: Backend) -> None:
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, scale.dtype))
        self._model = loaded.to(scale.device)
        self._publisher = PublisherSpec(backend, TIMEOUT_S).build()

    def publish(self, actor: Any, rounds: int) -> tuple[int, list[tuple[float, float]]]:
        """Bytes, and seconds of each round's copy and transfer."""
        from learner.zero.weights import metadata, named_layers

        self._publisher.retarget({"actor-0": actor})
        seconds = []
        for version in range(rounds + 2):  # both slots are warm then
            started = time.perf_counter()
            self._publisher.stage(version, metadata(self._model), named_layers(self._model, zero_stage=0))
            staged = time.perf_counter()
            (ack,) = self._publisher.send()
            if ack.error:
                raise RuntimeError(ack.error)
            seconds.append((staged - started, time.perf_counter() - staged))
        return sum(p.numel() * p.element_size() for p in self._model.parameters()), seconds[2:]


def measure(scale: Scale) -> Iterator[Figure]:
    """One figure a backend."""
    gpus = torch.cuda.device_count() if scale.device == "cuda" else 0
    backends: list[Backend] = ["shm", "ipc"] if gpus else ["shm", "gloo"]
    if gpus > 1:
        backends.append("nccl")
    with tempfile.TemporaryDirectory() as folder:
        model = write(scale, Path(folder))
        for backend in backends:
            yield _measure(scale, model, backend, spread=backend == "nccl")


def _measure(scale: Scale, model: str, backend: Backend, *, spread: bool) -> Figure:
    """``spread``: sender and engine on two GPUs."""
    gpu = scale.device == "cuda"
    nothing = Work(Plan(0, np.zeros(0, np.int32), 8, 1), TokenTable.empty())
    # Without CUDA graphs the engine starts sooner; its weights are the same.
    generation = GenerationConfig(gpu_memory_utilization=0.5, enforce_eager=True)
    actor = start(scale, model, backend, generation, nothing)
    sender = None
    try:
        ray.get(actor.ready.remote())
        share = 0 if not gpu else 1.0 if spread else 0.5
        sender = ray.remote(num_cpus=0, num_gpus=share)(Sender).remote(model, scale, backend)
        size, seconds = ray.get(sender.publish.remote(actor, scale.rounds))
    except ray.exceptions.RayError as error:
        return Figure("publication", backend, scale.learner, note=f"failed: {first_line(error)}")
    finally:
        for handle in (actor, sender):
            if handle is not None:
                ray.kill(handle)
    staged, sent = (statistics.median(part) for part in zip(*seconds, strict=True))
    note = f"{size / 1e9:.2f} GB: copied out in {staged:.2f} s, sent in {sent:.2f} s"
    return Figure(
        "publication", backend, scale.learner, bytes_per_s=size / (staged + sent), seconds=staged + sent, note=note
    )
