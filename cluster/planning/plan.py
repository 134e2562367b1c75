"""One plan: whether a run fits a cluster, how its GPUs are best divided, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from cluster.config.run_config import RunConfig
from cluster.planning.memory import (
    EngineMemory,
    RankMemory,
    actor_host_bytes,
    checkpoint_bytes,
    engine_memory,
    host_bytes,
    object_store_bytes,
    rank_host_bytes,
    rank_memory,
)
from cluster.planning.model_shape import ModelShape
from cluster.planning.throughput import Calibration, Device, StepTime, step_time
from cluster.planning.workload import Workload, trained_tokens
from cluster.run.inputs import steps_over
from cluster.workers.resources import demands
from cluster.workers.room import Node, fits
from learner.zero.optim import effective_zero_stage

USABLE = 0.94
"""Of a GPU's memory, for a learner rank: the CUDA context and torch's blocks take the rest."""
PLENTY_OF_CORES = 1e9


@dataclass(frozen=True)
class Machines:
    """The cluster that is planned for."""

    nodes: int
    gpus: int
    """On each node; 0 plans for CPU."""
    gpu_memory_bytes: float
    device: Device

    @property
    def engine_gpu_bytes(self) -> float | None:
        """Memory of a GPU; None on CPU."""
        return self.gpu_memory_bytes if self.gpus else None


@dataclass(frozen=True)
class Split:
    """So many ranks and actors."""

    ranks: int
    actors: int
    memory: RankMemory
    step: StepTime
    wrong: str
    """Why it does not fit; empty where it does."""

    def pairs_per_s(self, config: RunConfig) -> float:
        return config.learner.batch_size / self.step.total_s


@dataclass(frozen=True)
class Plan:
    """What ``sapo plan`` prints."""

    stages: dict[int, RankMemory]
    """By ZeRO stage, for the config's ranks; in bfloat16 the stages begin at 2."""
    engine: EngineMemory | None
    """None where no actors run."""
    host_bytes: float
    """Of the fullest node."""
    rank_host_bytes: float
    """Of that, one rank's process."""
    actor_host_bytes: float
    """The same of one actor; 0 where no actors run."""
    store_bytes: float | None
    checkpoint_bytes: float
    checkpoints_kept_bytes: float
    """All that lie on the disk while a new one is written."""
    own: Split
    """The config's."""
    others: list[Split]
    """Every other way to divide the GPUs that fits, the fastest first."""
    steps: int | None
    """None: rows unknown."""
    seconds: float | None
    trained_tokens: float | None
    generated_tokens: float | None

    @property
    def best(self) -> Split:
        return min([self.own, *self.others], key=lambda split: (bool(split.wrong), split.step.total_s))


def make_plan(
    config: RunConfig, shape: ModelShape, workload: Workload, machines: Machines, calibration: Calibration
) -> Plan:
    """Everything about one run on one cluster."""

    def split(ranks: int, actors: int) -> Split:
        changed = _with(config, ranks, actors)
        memory = rank_memory(changed, shape, ranks, workload)
        step = step_time(
            changed, shape, workload, machines.device, machines.engine_gpu_bytes, ranks, actors, calibration
        )
        return Split(ranks, actors, memory, step, _wrong(changed, memory, step, machines))

    sapo = config.method == "sapo"
    own = split(config.learner.ranks, config.generation.actors if sapo else 0)
    others = [split(*counts) for counts in _counts(config, machines) if counts != (own.ranks, own.actors)]
    steps = steps_over(config, workload.rows or 0) if workload.rows or config.learner.steps is not None else None
    indices = config.inserts_per_step if sapo else 0
    checkpoint = checkpoint_bytes(config, shape, workload, own.ranks)
    here = min(own.ranks, machines.gpus or own.ranks)
    return Plan(
        stages={stage: rank_memory(config, shape, own.ranks, workload, stage=stage) for stage in _stages(config)},
        engine=engine_memory(config, shape, workload, machines.engine_gpu_bytes) if sapo else None,
        host_bytes=host_bytes(
            config, shape, workload, here, _beside(config, machines, here, own.actors), use_gpu=machines.gpus > 0
        ),
        rank_host_bytes=rank_host_bytes(config, shape, workload, use_gpu=machines.gpus > 0),
        actor_host_bytes=actor_host_bytes(config, shape, workload, use_gpu=machines.gpus > 0) if sapo else 0.0,
        store_bytes=object_store_bytes(config, workload),
        checkpoint_bytes=checkpoint,
        checkpoints_kept_bytes=checkpoint * (config.checkpoint.keep + 1),
        own=own,
        others=sorted((s for s in others if not s.wrong), key=lambda s: s.step.total_s),
        steps=steps,
        seconds=steps * own.step.total_s if steps is not None else None,
        trained_tokens=steps * config.learner.batch_size * trained_tokens(config, workload) if steps else None,
        generated_tokens=steps * indices * workload.segment if steps else None,
    )


def _stages(config: RunConfig) -> list[int]:
    """Of ZeRO, that the run's dtype allows."""
    first = effective_zero_stage(config.model, config.learner.model_copy(update={"zero_stage": 0}))
    return list(range(first, 4))


def _with(config: RunConfig, ranks: int, actors: int) -> RunConfig:
    learner = config.learner.model_copy(update={"ranks": ranks})
    generation = config.generation.model_copy(update={"actors": actors})
    return config.model_copy(update={"learner": learner, "generation": generation})


def _counts(config: RunConfig, machines: Machines) -> list[tuple[int, int]]:
    """All ways to use the GPUs: ranks that divide the batch, and as many actors as the others hold."""
    total, parts = machines.nodes * machines.gpus, config.generation.tensor_parallel
    ranks = [n for n in range(1, total + 1) if config.learner.batch_size % n == 0]
    if config.method != "sapo":
        return [(n, 0) for n in ranks]
    if config.cluster.colocate:
        return [(1, 1)]
    return [(n, actors) for n in ranks if (actors := (total - n) // parts)]


def _wrong(config: RunConfig, memory: RankMemory, step: StepTime, machines: Machines) -> str:
    """Why a split can't run on these machines; empty when it can."""
    if step.generation_s == inf:
        return "no actor, or no request fits an engine's cache"
    if not machines.gpus:
        return ""
    node: Node = {"GPU": float(machines.gpus), "CPU": PLENTY_OF_CORES}
    ranks, actors = demands(config, use_gpu=True)
    # What pins a process to a kind of node says nothing about room.
    ranks, actors = (replace(d, bundle={k: d.bundle[k] for k in ("CPU", "GPU")}) for d in (ranks, actors))
    if not fits([node] * machines.nodes, ranks, actors):
        return "more GPUs than there are"
    if memory.on_device > USABLE * machines.gpu_memory_bytes:
        return "a rank needs more memory than a GPU has"
    return ""


def _beside(config: RunConfig, machines: Machines, ranks: int, actors: int) -> int:
    """Actors on the node that has the first ``ranks`` ranks."""
    if not machines.gpus or config.cluster.colocate:
        return actors
    return min(actors, (machines.gpus - ranks) // config.generation.tensor_parallel)
