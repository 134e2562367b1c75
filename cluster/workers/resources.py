"""What a cluster offers and what a run takes of it: cores, GPUs, the environment of its processes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import ray
from ray._private.state import state

from cluster.config.run_config import RunConfig
from cluster.workers.room import Bundle, Demand, Node, fits, may_hold, shortage, times
from contracts.errors import UserError

LARGE_BLOCKS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": f"glibc.cpu.x86_non_temporal_threshold={1 << 20}",
}
"""For glibc: on CPU each step and each reload of weights asks for the same large blocks again, and to give them back in
between costs more in page faults than it saves. A process stays as large as its largest step. In one arena a thread
finds what another has freed. Copies of a MiB and more go past the caches, which would not keep them for the reader."""


ANSWER_S = 5.0
"""Longest wait for a node to take a connection."""
HALF = 0.5
"""Of a GPU, for each of the two that take turns on it."""


@dataclass(frozen=True)
class Hardware:
    """What the cluster offers to a run."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    local: bool
    """Whether this process started the cluster, so that everything shares one machine."""
    each_node: tuple[Node, ...] = ()
    """All resources of every node, whoever uses them now."""

    @property
    def use_gpu(self) -> bool:
        return self.gpus > 0

    def environment(self, threads: int) -> dict[str, str]:
        """Variables of a rank's or an actor's process."""
        return {"OMP_NUM_THREADS": str(threads)} | ({} if self.use_gpu else LARGE_BLOCKS)

    def __str__(self) -> str:
        where = "local Ray" if self.local else f"Ray at {self.address}"
        return f"{where}: {self.nodes} node(s), {self.cpus:g} CPUs, {self.gpus:g} GPUs"


class Division(NamedTuple):
    """How many of a cluster's places go to which side."""

    ranks: int
    actors: int
    """0 where the method has none."""

    def __str__(self) -> str:
        """As overrides."""
        return f"learner.ranks={self.ranks}" + (f" generation.actors={self.actors}" if self.actors else "")


def connected_hardware(address: str, *, local: bool) -> Hardware:
    """What the cluster that this process is connected to has now."""
    total = ray.cluster_resources()
    alive = _alive()
    each_node = tuple(node["Resources"] for node in alive)
    return Hardware(address, len(alive), total.get("CPU", 0.0), total.get("GPU", 0.0), local, each_node)


def nodes_that_answer() -> list[Node]:
    """All resources of every node that is there now. Ray itself takes up to half a minute to notice a death."""
    return [node["Resources"] for node in _alive() if _answers(node)]


def silent_nodes() -> int:
    """How many nodes give no answer that Ray still takes for alive, and would place a part on."""
    return sum(not _answers(node) for node in _alive())


def _alive() -> list[dict[str, Any]]:
    """The nodes that Ray takes for alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def _answers(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def this_machine(config: RunConfig) -> Hardware:
    """What a Ray that is started here for the run would have."""
    import torch

    cpus = float(config.cluster.cpus or max(os.cpu_count() or 1, ceil(needed_cpus(config))))
    gpus = float(torch.cuda.device_count())
    return Hardware("local", 1, cpus, gpus, local=True, each_node=({"CPU": cpus} | ({"GPU": gpus} if gpus else {}),))


def totals() -> str:
    """The cluster's cores and GPUs, for messages."""
    total = ray.cluster_resources()
    return f"the cluster has CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g}"


def rank_bundle(config: RunConfig, *, use_gpu: bool) -> Bundle:
    """Of one learner rank, and of the actor that shares its GPU, where one does: Ray would put two ranks on one GPU
    if it were asked for halves."""
    if not config.cluster.colocate:
        return rank_share(config, use_gpu=use_gpu)
    rank, actor = rank_share(config, use_gpu=use_gpu), actor_bundle(config, use_gpu=use_gpu)
    return {name: rank.get(name, 0.0) + actor.get(name, 0.0) for name in dict.fromkeys((*rank, *actor))}


def rank_share(config: RunConfig, *, use_gpu: bool) -> Bundle:
    """What the rank itself takes of its bundle."""
    bundle: Bundle = {"CPU": config.learner.cpus_per_rank} | config.cluster.learner_resources
    return bundle | {"GPU": HALF if config.cluster.colocate else 1.0} if use_gpu else bundle


def actor_bundle(config: RunConfig, *, use_gpu: bool) -> Bundle:
    """Of one generation actor; the GPUs of a tensor-parallel engine are on one node."""
    bundle: Bundle = {"CPU": config.generation.cpus_per_actor} | config.cluster.actor_resources
    gpus = HALF if config.cluster.colocate else float(config.generation.tensor_parallel)
    return bundle | {"GPU": gpus} if use_gpu else bundle


def evaluator_bundle(*, use_gpu: bool) -> Bundle:
    """Of the evaluation actor, which loads a model as ``sapo eval`` does."""
    return {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {})


def demands(config: RunConfig, *, use_gpu: bool, learner: bool = True) -> tuple[Demand, Demand]:
    """Ranks and actors that a run starts with. ``learner``: False for generation alone."""
    ranks, actors = config.learner.ranks if learner else 0, config.generation.actors if config.method == "sapo" else 0
    if config.cluster.colocate and ranks:
        actors = 0  # they are in the ranks' bundles
    return (
        Demand("ranks", "learner.ranks", ranks, rank_bundle(config, use_gpu=use_gpu), config.cluster.strategy),
        Demand("actors", "generation.actors", actors, actor_bundle(config, use_gpu=use_gpu)),
    )


def require_room(config: RunConfig, hardware: Hardware, log: logging.Logger, *, learner: bool = True) -> None:
    """Count what the run needs before anything starts.

    Where there are no GPUs and nothing is pinned to a kind of node, cores that are missing are only named: nodes may
    join. So may they where Ray's autoscaler can add what is missing.

    Raises:
        UserError: ranks and actors can't be placed on the nodes that there are.
    """
    ranks, actors = demands(config, use_gpu=hardware.use_gpu, learner=learner)
    cores = needed_cpus(config)
    if not (hardware.use_gpu or config.cluster.learner_resources or config.cluster.actor_resources):
        if cores > hardware.cpus:
            log.info("reserves %g CPUs of %g; waits for nodes to join", cores, hardware.cpus)
        return
    missing = shortage(hardware.each_node, ranks, actors)
    if missing is None:
        if learner and config.evaluation.every and not _fits_beside(hardware, ranks, actors):
            log.warning(
                "evaluation.every %d: no room for the evaluation actor beside ranks and actors, which needs %s; "
                "evaluations wait for it, and are skipped meanwhile",
                config.evaluation.every,
                ", ".join(f"{amount:g} {name}" for name, amount in evaluator_bundle(use_gpu=hardware.use_gpu).items()),
            )
        return
    if not hardware.local and _can_grow_to(ranks, actors):  # nothing adds nodes to a Ray of this process
        log.info("%s; waits for Ray's autoscaler", missing)
        return
    smaller = largest_division(config, hardware.each_node, use_gpu=hardware.use_gpu)
    raise UserError(f"cluster: {missing}" + (f"; e.g. {smaller}" if smaller else ""))


def _fits_beside(hardware: Hardware, ranks: Demand, actors: Demand) -> bool:
    """Whether some node has room for the evaluation actor when ranks and actors are placed."""
    bundle = evaluator_bundle(use_gpu=hardware.use_gpu)
    for place, node in enumerate(hardware.each_node):
        left = {name: amount - bundle.get(name, 0.0) for name, amount in node.items()}
        others = (*hardware.each_node[:place], left, *hardware.each_node[place + 1 :])
        if may_hold(node, Demand("evaluator", "", 1, bundle)) and fits(others, ranks, actors):
            return True
    return False


def _can_grow_to(ranks: Demand, actors: Demand) -> bool:
    """Whether an autoscaler has said that it can add nodes until there is enough of everything."""
    most = state.get_max_resources_from_cluster_config() or {}
    names = ranks.bundle.keys() | actors.bundle.keys()
    return bool(most) and all(
        sum(demand.count * demand.bundle.get(name, 0.0) for demand in (ranks, actors)) <= most.get(name, 0)
        for name in names
    )


def largest_division(config: RunConfig, nodes: Sequence[Node], *, use_gpu: bool) -> Division | None:
    """As many ranks as divide the batch and fit ``nodes`` beside at least one actor, and the actors that fit beside
    them; at most the config's ranks. None where nothing fits."""
    ranks, actors = demands(config, use_gpu=use_gpu)
    for count in (n for n in range(ranks.count, 0, -1) if config.learner.batch_size % n == 0):
        fewer = replace(ranks, count=count)
        for beside in range(actors.count, 0 if actors.count else -1, -1):
            if fits(nodes, fewer, replace(actors, count=beside)):
                # GPUs that ranks leave over serve generation.
                while actors.count and fits(nodes, fewer, replace(actors, count=beside + 1)):
                    beside += 1  # noqa: PLW2901
                return Division(count, count if config.cluster.colocate else beside)
    return None


def spare_actors(config: RunConfig, *, use_gpu: bool) -> int:
    """Generation actors that the nodes have room for beside what runs there now."""
    bundle = actor_bundle(config, use_gpu=use_gpu)
    return sum(times(node, bundle) for node in state.available_resources_per_node().values())


def needed_cpus(config: RunConfig) -> float:
    """CPU cores that the run reserves: ranks, actors, evaluation actor; buffer and control reserve none."""
    beside = evaluator_bundle(use_gpu=False)["CPU"] if config.evaluation.every else 0.0
    return beside + sum(demand.count * demand.bundle["CPU"] for demand in demands(config, use_gpu=False))
