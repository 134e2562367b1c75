"""Places and starts generation actors, each in a placement group of its own, so that it can come and go alone."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.generator import GenerationActor
from actors.plan import Plan
from actors.token_table import TokenTable
from buffer.client import ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.weights.publisher import choose_backend
from cluster.workers.control import NAMESPACE
from cluster.workers.ray_session import Hardware

CONCURRENT_CALLS = 1000
"""Awaitable calls an actor may have open: one long-running ``run`` and the control calls beside it."""


@dataclass(frozen=True)
class ActorFactory:
    """What every generation actor of a run is made of."""

    config: RunConfig
    hardware: Hardware
    eos: tuple[int, ...]
    buffer: ReplayBuffer
    work: ray.ObjectRef
    """Refers to (Plan, TokenTable)."""

    @classmethod
    def of(
        cls, config: RunConfig, hardware: Hardware, table: TokenTable, eos: int | list[int], buffer: ReplayBuffer
    ) -> ActorFactory:
        generation = config.generation
        plan = Plan(config.seed, table.response_lengths, generation.segment_length, generation.responses_per_prompt)
        ends = (eos,) if isinstance(eos, int) else tuple(eos)
        return cls(config, hardware, ends, buffer, ray.put((plan, table)))

    @property
    def backend(self) -> str:
        """How weights reach the engines."""
        return choose_backend(self.config.weights.backend, self.hardware.use_gpu, self.hardware.nodes)

    @property
    def bundle(self) -> dict[str, float]:
        """Cores and GPUs of one actor; the GPUs of a tensor-parallel engine are on one node."""
        generation = self.config.generation
        gpus = 0.5 if self.config.cluster.colocate else float(generation.tensor_parallel)
        return {"CPU": generation.cpus_per_actor} | ({"GPU": gpus} if self.hardware.use_gpu else {})

    def place(self, name: str) -> PlacementGroup:
        """Ask for an actor's place; the group is ready when the cluster has it."""
        return placement_group([self.bundle], strategy="STRICT_PACK", name=f"{self.config.name}-{name}")

    def spawn(self, name: str, placement: PlacementGroup) -> ActorHandle:
        """Start an actor whose engine loads the starting model."""
        config = self.config
        engine = {
            "model": config.model.path,
            "tokenizer": config.model.tokenizer,
            "dtype": config.model.dtype,
            "max_length": config.data.max_length,
            "eos": self.eos,
            "seed": config.seed,
            "backend": self.backend,
            "use_gpu": self.hardware.use_gpu,
            "trust_remote_code": config.model.trust_remote_code,
            "sleep_mode": config.cluster.colocate,
        }
        return (
            ray.remote(GenerationActor)
            .options(
                name=f"{config.name}-{name}",
                namespace=NAMESPACE,
                num_cpus=self.bundle["CPU"],
                num_gpus=self.bundle.get("GPU", 0),
                max_concurrency=CONCURRENT_CALLS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, 0),
                runtime_env={"env_vars": self.hardware.environment(1)},
            )
            .remote(name, engine, config.generation, self.work, self.buffer)
        )
