"""A generation actor as a run starts it, for the sections that need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import Backend, EngineSpec, Work
from benchmarks.gpu.scale import ARCHITECTURES, Scale
from benchmarks.models import with_random_weights
from demo.model import write_model

MAX_LENGTH = 2048


def write(scale: Scale, folder: Path) -> str:
    """A random model of the scale's architecture; its folder."""
    path = folder / "model"
    write_model(path)
    with_random_weights(path, scale.dtype, scale.device, **ARCHITECTURES[scale.learner].changes())
    return str(path)


def start(
    scale: Scale, model: str, backend: Backend, generation: GenerationConfig, work: Work, buffer: Any = None
) -> Any:
    """Its handle; ``ready`` answers when the engine is up."""
    gpu = scale.device == "cuda"
    engine = EngineSpec(model, scale.dtype, MAX_LENGTH, ends=(2,), seed=0, backend=backend, use_gpu=gpu)
    return (
        ray.remote(GenerationActor)
        .options(num_cpus=0, num_gpus=0.5 if gpu else 0, max_concurrency=1000)
        .remote("actor-0", engine, generation, work, buffer)
    )
