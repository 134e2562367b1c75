"""What a publisher is made of: this travels to the learner ranks, the publisher itself does not.

Imports neither vLLM nor torch: the driver reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actors.messages import Backend

if TYPE_CHECKING:
    from cluster.weights.publisher import Publisher


@dataclass(frozen=True)
class PublisherSpec:
    """What a publisher is made of; it travels, the publisher does not."""

    backend: Backend
    timeout_s: float
    """Longest wait for any answer of an actor."""
    workers_per_engine: int = 1
    """Processes of one engine that receive weights."""
    overlap: bool = True
    """Whether a version may be sent while the next is staged; without, one copy of the weights is held, not two."""

    def build(self) -> Publisher:
        """A publisher of the process that calls."""
        from cluster.weights.publisher import Publisher
        from cluster.weights.staging import StagedVersions

        on_gpu = self.backend in ("nccl", "ipc")
        device = "cuda:0" if on_gpu else None
        staged = StagedVersions(shared=self.backend == "shm", overlap=self.overlap, device=device)
        return Publisher(self.backend, staged, timeout_s=self.timeout_s, workers_per_engine=self.workers_per_engine)


def choose_backend(wanted: Backend | Literal["auto"], use_gpu: bool, nodes: int, *, colocate: bool = False) -> Backend:
    """``auto``: nccl between GPUs, shared memory on one machine, else gloo. NCCL refuses two processes on one GPU."""
    if wanted != "auto":
        return wanted
    if use_gpu and not colocate:
        return "nccl"
    return "shm" if nodes == 1 else "gloo"
