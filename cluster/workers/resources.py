"""What a cluster offers and what a run takes of it: cores, GPUs, the environment of its processes."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from cluster.config.run_config import RunConfig

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

Bundle = dict[str, float]
"""Cores ("CPU") and GPUs ("GPU") that one process reserves, as Ray's placement groups take them."""


@dataclass(frozen=True)
class Hardware:
    """What the cluster offers to a run."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    local: bool
    """Whether this process started the cluster, so that everything shares one machine."""

    @property
    def use_gpu(self) -> bool:
        return self.gpus > 0

    def environment(self, threads: int) -> dict[str, str]:
        """Variables of a rank's or an actor's process."""
        return {"OMP_NUM_THREADS": str(threads)} | ({} if self.use_gpu else LARGE_BLOCKS)

    def __str__(self) -> str:
        where = "local Ray" if self.local else f"Ray at {self.address}"
        return f"{where}: {self.nodes} node(s), {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def connected_hardware(address: str, *, local: bool) -> Hardware:
    """What the cluster that this process is connected to has now."""
    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Hardware(address, len(alive), total.get("CPU", 0.0), total.get("GPU", 0.0), local)


def totals() -> str:
    """The cluster's cores and GPUs, for messages."""
    total = ray.cluster_resources()
    return f"the cluster has CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g}"


def rank_bundle(config: RunConfig, *, use_gpu: bool) -> Bundle:
    """Of one learner rank."""
    cores: Bundle = {"CPU": config.learner.cpus_per_rank}
    return cores | {"GPU": 0.5 if config.cluster.colocate else 1.0} if use_gpu else cores


def actor_bundle(config: RunConfig, *, use_gpu: bool) -> Bundle:
    """Of one generation actor; the GPUs of a tensor-parallel engine are on one node."""
    cores: Bundle = {"CPU": config.generation.cpus_per_actor}
    gpus = 0.5 if config.cluster.colocate else float(config.generation.tensor_parallel)
    return cores | {"GPU": gpus} if use_gpu else cores


def needed_cpus(config: RunConfig) -> float:
    """CPU cores that the run reserves: ranks and actors; buffer and control reserve none."""
    cores = config.learner.ranks * config.learner.cpus_per_rank
    if config.method == "sapo":
        cores += config.generation.actors * config.generation.cpus_per_actor
    return cores
