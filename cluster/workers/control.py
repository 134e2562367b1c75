"""How a person reaches a run that is going on: a named Ray actor with a mailbox."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Literal

import ray

from cluster.config.sections import ClusterConfig
from cluster.status.board import Board
from cluster.workers.find_run import find_run
from cluster.workers.ray_calls import NAMESPACE, RayCalls, Worker, WorkerFailure
from cluster.workers.ray_session import ray_session
from contracts.errors import UserError

PREFIX = "control-"
CLAIM_S = 10.0
"""Longest wait for the mailbox of another run."""


@dataclass(frozen=True)
class Request:
    """What a person asks of a run."""

    what: Literal["actors", "checkpoint", "stop"]
    """More or fewer generation actors; a checkpoint after the current step; that, and the end of the run."""
    count: int = 0
    """Actors that should join; negative: leave."""


class Control:
    """The run's mailbox. The driver's inbox awaits ``next_request``; the command line fills it."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._waiting: asyncio.Future[Request | None] | None = None
        self._board: Board | None = None

    def __repr__(self) -> str:
        """As Ray's dashboard and log prefixes name it."""
        return "mailbox of a run"

    async def post(self, board: Board) -> None:
        """Keep what the run is doing now."""
        self._board = board

    async def board(self) -> Board | None:
        """The newest; None before the first."""
        return self._board

    async def alive(self) -> None:
        """Answers while the run goes on."""

    async def ask(self, request: Request) -> None:
        self._requests.append(request)
        self._hand_over()

    async def next_request(self) -> Request | None:
        """Waits for one. A newer call takes the place of an older one, which is answered None: the inbox of an attempt
        that failed must not take what is meant for the next."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)
        self._waiting = asyncio.get_running_loop().create_future()
        self._hand_over()
        return await self._waiting

    def _hand_over(self) -> None:
        if self._requests and self._waiting and not self._waiting.done():
            self._waiting.set_result(self._requests.popleft())


def claim_name(run: str) -> None:
    """
    Raises:
        UserError: a run of this name is going on at the connected cluster.
    """
    try:
        mailbox = ray.get_actor(_name(run), namespace=NAMESPACE)
        ray.get(mailbox.alive.remote(), timeout=CLAIM_S)
    except (ValueError, ray.exceptions.RayError):
        return  # there is none, or what is left of one that ended
    raise UserError(f"name {run}: a run of this name is going on at this cluster; give another name=, or wait for it")


def open_control(run: str) -> Worker:
    """The mailbox of a run; it goes with the driver."""
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


def ask(run: str, request: Request, config: ClusterConfig) -> None:
    """Ask something of a run that is going on.

    Raises:
        UserError: no cluster, or no such run there.
    """
    found = find_run(run, config.address)
    if found.address is None or found.name is None:
        raise UserError(f"run {run}: it is not going on; for a run on a cluster give --address or RAY_ADDRESS")
    with ray_session(config.model_copy(update={"address": found.address}), 0, found.auth):
        try:
            RayCalls().answer(find_control(found.name).call("ask", request))
        except WorkerFailure as failure:  # the mailbox goes with the run
            raise UserError(f"run {run}: it ended before it could be asked") from failure


def going_on() -> list[str]:
    """Names of the runs that are going on at the connected cluster."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"].removeprefix(PREFIX)
        for actor in named
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX)
    )


def _name(run: str) -> str:
    return f"{PREFIX}{run}"
