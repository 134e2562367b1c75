"""Places and starts generation actors, each in a placement group of its own, so that it can come and go alone."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import EngineSpec, Work
from actors.plan import Plan
from actors.token_table import TokenTable
from buffer.client import ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.weights.publisher_spec import choose_backend
from cluster.workers.ray_calls import Call, Placement, Worker
from cluster.workers.resources import Bundle, Hardware, actor_bundle

CONCURRENT_CALLS = 1000
"""Awaitable calls an actor may have open: one long-running ``run`` and the control calls beside it."""


@dataclass(frozen=True)
class ActorFactory:
    """What every generation actor of a run is made of."""

    label: str
    """With which the actors' names on the cluster begin."""
    engine: EngineSpec
    generation: GenerationConfig
    bundle: Bundle
    environment: dict[str, str]
    buffer: ReplayBuffer
    work: ray.ObjectRef
    """Refers to ``Work``."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        hardware: Hardware,
        table: TokenTable,
        ends: tuple[int, ...],
        buffer: ReplayBuffer,
        label: str,
    ) -> ActorFactory:
        """
        Args:
            ends: token ids that end a response.
            label: with which the actors' names on the cluster begin.
        """
        generation = config.generation
        engine = EngineSpec(
            model=config.model.path,
            dtype=config.model.dtype,
            max_length=config.data.max_length,
            ends=ends,
            seed=config.seed,
            backend=choose_backend(config.weights.backend, hardware.use_gpu, hardware.nodes),
            use_gpu=hardware.use_gpu,
            trust_remote_code=config.model.trust_remote_code,
            sleep_mode=config.cluster.colocate,
            batch_invariant=config.repeatable_on_gpu,
        )
        segment, responses = generation.segment_length, generation.responses_per_prompt
        plan = Plan(config.seed, table.response_lengths, segment, responses, table.shares)
        return cls(
            label=label,
            engine=engine,
            generation=generation,
            bundle=actor_bundle(config, use_gpu=hardware.use_gpu),
            environment=hardware.environment(threads=1),
            buffer=buffer,
            work=ray.put(Work(plan, table)),
        )

    def place(self, name: str) -> Placement:
        """Ask for an actor's place."""
        return Placement.ask([self.bundle], "STRICT_PACK", f"{self.label}-{name}")

    def adopt(self, worker: Worker) -> Call:
        """Let an actor of an earlier attempt work for this one's buffer; its engine keeps what it has loaded."""
        return worker.call("adopt", self.buffer)

    def spawn(self, name: str, placement: Placement) -> Worker:
        """Start an actor whose engine loads the starting model."""
        return placement.start(
            GenerationActor,
            name,
            self.engine,
            self.generation,
            self.work,
            self.buffer,
            name=f"{self.label}-{name}",
            environment=self.environment,
            concurrent_calls=CONCURRENT_CALLS,
        )
