"""Places and starts generation actors, each in a placement group of its own, so that it can come and go alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import Adapters, Backend, EngineSpec, Work
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
    beside: Placement | None = None
    """The ranks' place, where each actor shares a rank's GPU (``cluster.colocate``)."""
    _free: list[int] = field(default_factory=list)
    """Its seats without an actor."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        hardware: Hardware,
        table: TokenTable,
        ends: tuple[int, ...],
        buffer: ReplayBuffer,
        label: str,
        beside: Placement | None = None,
        adapters: Adapters | None = None,
    ) -> ActorFactory:
        """
        Args:
            ends: token ids that end a response.
            label: with which the actors' names on the cluster begin.
            beside: the ranks' place, where each actor shares a rank's GPU.
            adapters: what is published, where it is not whole weights.
        """
        generation = config.generation
        engine = EngineSpec(
            model=config.model.path,
            dtype=config.model.dtype,
            max_length=config.data.max_length,
            ends=ends,
            seed=config.seed,
            backend=backend_of(config, hardware),
            use_gpu=hardware.use_gpu,
            trust_remote_code=config.model.trust_remote_code,
            sleep_mode=config.cluster.colocate,
            batch_invariant=config.repeatable_on_gpu,
            adapters=adapters,
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
            beside=beside,
            _free=list(range(len(beside.bundles))) if beside else [],
        )

    def place(self, name: str) -> Placement:
        """Ask for an actor's place."""
        if self.beside is None:
            return Placement.ask([self.bundle], "STRICT_PACK", f"{self.label}-{name}")
        seat = self._free.pop(0)
        return Placement(self.beside.bundles, self.beside.group, seat, vacate=lambda: self._free.append(seat))

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
            takes=self.bundle,
            name=f"{self.label}-{name}",
            environment=self.environment,
            concurrent_calls=CONCURRENT_CALLS,
        )


def backend_of(config: RunConfig, hardware: Hardware) -> Backend:
    """How weights reach the engines of a run."""
    return choose_backend(config.weights.backend, hardware.use_gpu, hardware.nodes, colocate=config.cluster.colocate)
