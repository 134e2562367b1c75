"""How a person reaches a run that is going on: a named Ray actor with a mailbox."""

from __future__ import annotations

import asyncio
import os

import ray
from ray.actor import ActorHandle

from cluster.config.run_config import ClusterConfig
from cluster.workers.ray_session import ray_cluster
from contracts.errors import UserError

NAMESPACE = "sapo"


class Control:
    """The run's mailbox. The driver awaits ``actors_wanted``; ``sapo actors`` fills it."""

    def __init__(self) -> None:
        self._wanted: asyncio.Queue[int] = asyncio.Queue()

    async def want_actors(self, change: int) -> None:
        """Ask for ``change`` more generation actors (negative: fewer)."""
        await self._wanted.put(change)

    async def actors_wanted(self) -> int:
        """The next change; waits for one."""
        return await self._wanted.get()


def open_control(run: str) -> ActorHandle:
    """The mailbox of a starting run; it goes with the driver."""
    return ray.remote(Control).options(name=_name(run), namespace=NAMESPACE, num_cpus=0, get_if_exists=True).remote()


def find_control(run: str) -> ActorHandle:
    """The mailbox of a running run on the connected cluster.

    Raises:
        UserError: no run of this name is going on there.
    """
    try:
        return ray.get_actor(_name(run), namespace=NAMESPACE)
    except ValueError as error:
        raise UserError(f"run {run}: no such run is going on at this cluster") from error


def _name(run: str) -> str:
    return f"control-{run}"


def change_actors(run: str, change: int, config: ClusterConfig) -> None:
    """Let ``change`` generation actors join (negative: leave) a run that is going on.

    Raises:
        UserError: no cluster, or no such run there.
    """
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        raise UserError("cluster.address: say which cluster the run is on: --address, or RAY_ADDRESS")
    with ray_cluster(config, 0):
        try:
            ray.get(find_control(run).want_actors.remote(change))
        except ray.exceptions.RayActorError as error:  # the mailbox goes with the run
            raise UserError(f"run {run}: it ended before it could be asked") from error
