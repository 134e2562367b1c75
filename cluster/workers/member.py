"""One generation actor as the pool sees it: its place, its process, what it is doing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from cluster.workers.ray_calls import Call, Placement, Worker
from cluster.workers.watch import Watch


class State(Enum):
    """In the order of an actor's life."""

    PLACING = "placing"
    """The cluster looks for cores and GPUs."""
    PLACED = "placed"
    """It has a place, on a GPU that the learner is using."""
    STARTING = "starting"
    """The engine loads the model."""
    READY = "ready"
    """The engine is up; no weights have been published yet."""
    JOINING = "joining"
    """The newest weights are on their way to it."""
    RUNNING = "running"


@dataclass
class Member:
    """One actor and what it is expected to report next."""

    name: str
    placement: Placement
    awaited: Call | None
    """None: it waits for weights, which go to all at once."""
    since: float
    """When it was asked for, in seconds of the pool's clock."""
    worker: Worker | None = None
    state: State = State.PLACING
    version: int = -1
    """Newest weights version that it has acknowledged."""
    watch: Watch | None = None
    """While it runs."""
    leaving: bool = False
    """It was asked to finish what it has in hand; none takes its place."""

    @property
    def process(self) -> Worker:
        """Its process; it has one from ``STARTING`` on."""
        assert self.worker is not None, f"{self.name} is {self.state.value} and has no process yet"
        return self.worker


def end_all(members: Iterable[Member]) -> None:
    """Kill actors and free their places."""
    for member in members:
        if member.worker:
            member.worker.kill()
        member.placement.remove()
