"""How a person reaches a run that is going on: a named Ray actor with a mailbox."""

from __future__ import annotations

import asyncio
import os
from collections import deque

import ray

from cluster.config.sections import ClusterConfig
from cluster.workers.ray_calls import NAMESPACE, RayCalls, Worker, WorkerFailure
from cluster.workers.ray_session import ray_session
from contracts.errors import UserError


class Control:
    """The run's mailbox. The actor pool awaits ``actors_wanted``; ``sapo actors`` fills it."""

    def __init__(self) -> None:
        self._wanted: deque[int] = deque()
        self._waiting: asyncio.Future[int] | None = None

    async def want_actors(self, change: int) -> None:
        """Ask for ``change`` more generation actors (negative: fewer)."""
        self._wanted.append(change)
        self._hand_over()

    async def actors_wanted(self) -> int:
        """The next change; waits for one. A newer call takes the place of an older one, which is answered 0: the pool
        of an attempt that failed must not take what is meant for the next."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(0)
        self._waiting = asyncio.get_running_loop().create_future()
        self._hand_over()
        return await self._waiting

    def _hand_over(self) -> None:
        if self._wanted and self._waiting and not self._waiting.done():
            self._waiting.set_result(self._wanted.popleft())


def open_control(run: str) -> Worker:
    """The mailbox of a starting run; it goes with the driver."""
    name = _name(run)
    handle = ray.remote(Control).options(name=name, namespace=NAMESPACE, num_cpus=0, get_if_exists=True).remote()
    return Worker(name, handle)


def find_control(run: str) -> Worker:
    """The mailbox of a running run on the connected cluster.

    Raises:
        UserError: no run of this name is going on there.
    """
    try:
        return Worker(_name(run), ray.get_actor(_name(run), namespace=NAMESPACE))
    except ValueError as error:
        raise UserError(f"run {run}: no such run is going on at this cluster") from error


def change_actors(run: str, change: int, config: ClusterConfig) -> None:
    """Let ``change`` generation actors join (negative: leave) a run that is going on.

    Raises:
        UserError: no cluster, or no such run there.
    """
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        raise UserError("cluster.address: say which cluster the run is on: --address, or RAY_ADDRESS")
    with ray_session(config, needed_cpus=0):
        try:
            RayCalls().answer(find_control(run).call("want_actors", change))
        except WorkerFailure as failure:  # the mailbox goes with the run
            raise UserError(f"run {run}: it ended before it could be asked") from failure


def _name(run: str) -> str:
    return f"control-{run}"
