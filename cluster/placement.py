"""Places one generation actor: its cores, GPUs and environment."""

from __future__ import annotations

import ray
from ray.actor import ActorHandle

from actors.generator import GenerationActor
from buffer.client import ReplayBuffer
from cluster.config import RunConfig
from cluster.launch import Hardware

CONCURRENT_CALLS = 1000
"""Awaitable calls an actor may have open: one long-running ``run`` and the control calls beside it."""


def spawn_actor(
    name: str, config: RunConfig, hardware: Hardware, backend: str, work: ray.ObjectRef, eos: int | list[int],
    buffer: ReplayBuffer,
) -> ActorHandle:  # fmt: skip
    """Start an actor whose engine loads the starting model; ``work`` refers to (Plan, TokenTable)."""
    generation = config.generation
    gpus = generation.tensor_parallel if hardware.use_gpu else 0
    engine = {
        "model": config.model.path, "tokenizer": config.model.tokenizer, "dtype": config.model.dtype,
        "max_length": config.data.max_length, "eos": [eos] if isinstance(eos, int) else list(eos), "seed": config.seed,
        "backend": backend, "use_gpu": hardware.use_gpu, "trust_remote_code": config.model.trust_remote_code,
        "sleep_mode": config.cluster.colocate,
    }  # fmt: skip
    return (
        ray.remote(GenerationActor)
        .options(
            num_cpus=generation.cpus_per_actor,
            num_gpus=0.5 if config.cluster.colocate and gpus else gpus,
            max_concurrency=CONCURRENT_CALLS,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        .remote(name, engine, generation, work, buffer)
    )
