"""Connects to a Ray cluster or starts one on this machine, and says what runs where."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config.run_config import ClusterConfig, RunConfig
from contracts.errors import UserError

CONNECT_S = 10.0
"""Longest wait for a cluster's port to answer."""


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


@contextmanager
def ray_cluster(config: ClusterConfig, needed_cpus: float) -> Iterator[Hardware]:
    """Join ``config.address`` or RAY_ADDRESS; without either start Ray here, for the time of the run.

    Raises:
        UserError: no cluster answers at the address.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield _hardware(address or "this process", local=False)
        return
    folder = None
    if address:
        _join(address, config)
    else:
        # Ray's sockets live in this folder and their paths must stay below 108 characters.
        folder = tempfile.mkdtemp(prefix="sapo-", dir="/tmp")
        ray.init(
            address="local",
            num_cpus=config.cpus or max(os.cpu_count() or 1, int(needed_cpus + 0.999)),
            include_dashboard=config.dashboard,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            object_store_memory=config.object_store_bytes,
            log_to_driver=config.actor_output,
            logging_level="ERROR",
        )
    try:
        yield _hardware(address or "local", local=folder is not None)
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _join(address: str, config: ClusterConfig) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():
            # Ray itself tries for minutes where nobody listens.
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, log_to_driver=config.actor_output, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cluster.address {address}: no Ray cluster could be joined there: {reason}") from error


def _hardware(address: str, *, local: bool) -> Hardware:
    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Hardware(address, len(alive), total.get("CPU", 0.0), total.get("GPU", 0.0), local)


def needed_cpus(config: RunConfig) -> float:
    """CPU cores that the run reserves: ranks and actors; buffer and control reserve none."""
    cores = config.learner.ranks * config.learner.cpus_per_rank
    if config.method == "sapo":
        cores += config.generation.actors * config.generation.cpus_per_actor
    return cores


def reserve(bundles: list[dict[str, float]], strategy: str, config: ClusterConfig, purpose: str) -> PlacementGroup:
    """A placement group, waited for.

    Raises:
        UserError: the cluster can't place it within ``config.start_timeout_s``.
    """
    group = placement_group(bundles, strategy=strategy)
    if not group.wait(config.start_timeout_s):
        remove_placement_group(group)
        total = ray.cluster_resources()
        raise UserError(
            f"cluster: {purpose} needs {len(bundles)} x {bundles[0]} ({strategy}), not placed within "
            f"{config.start_timeout_s:g} s; the cluster has CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g}"
        )
    return group
