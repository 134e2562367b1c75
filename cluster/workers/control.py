"""How a person reaches a run that is going on: a named Ray actor with a mailbox."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.sections import ClusterConfig
from cluster.status.board import Board
from cluster.workers.find_run import find_run
from cluster.workers.ray_calls import NAMESPACE, Call, RayCalls, Worker, WorkerFailure
from cluster.workers.ray_session import ray_session
from contracts.errors import UserError

PREFIX = "control-"
CLAIM_S = 60.0
"""Longest wait for the mailbox of another run. Ray needs up to 30 s to know that it died with its node."""
OPEN_AGAIN_S = 20.0
"""Longest that a run may be without a mailbox before it is taken to have ended: one that dies is opened again."""
LOOK_S = 1.0
"""Pause between two looks for it."""
ALIVE_S = 5.0
"""Longest wait for an answer of one that seems to have died."""


@dataclass(frozen=True)
class Request:
    """What a person asks of a run."""

    what: Literal["actors", "checkpoint", "stop"]
    """More or fewer generation actors; a checkpoint; that, and the end of the run."""
    count: int = 0
    """Actors that should join; negative: leave."""
    key: str = field(default_factory=lambda: uuid4().hex, compare=False)
    """One that is sent again, as its answer was lost, is still the same."""


class Control:
    """The run's mailbox. The driver's inbox awaits ``next_request``; the command line fills it.

    A request stays until the inbox says that it has it: an answer may be lost, or go to the inbox of an attempt that
    has ended.
    """

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
        if request.key not in [waiting.key for waiting in self._requests]:
            self._requests.append(request)
        self._hand_over()

    async def next_request(self, taken: str = "") -> Request | None:
        """Waits for one. A newer call takes the place of an older one, which is answered None.

        Args:
            taken: key of the request that the inbox took last.
        """
        if self._requests and self._requests[0].key == taken:
            self._requests.popleft()
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)
        self._waiting = asyncio.get_running_loop().create_future()
        self._hand_over()
        return await self._waiting

    def _hand_over(self) -> None:
        if self._requests and self._waiting and not self._waiting.done():
            self._waiting.set_result(self._requests[0])


class Mailbox:
    """A run's mailbox as its driver holds it, from the first attempt to the last; while it does, no other run can have
    the name. Ray ends the process with the handle that it was started by."""

    def __init__(self, run: str) -> None:
        """
        Raises:
            UserError: a run of this name is going on at the connected cluster.
        """
        self._run = run
        self.worker = _claimed(run)

    def open_again(self) -> bool:
        """After it has died. One that only seems to have is kept.

        Returns:
            Whether there is one; Ray may not have let go of the name yet.
        """
        try:
            answer_of(self.worker.call("alive"), ALIVE_S)
        except WorkerFailure:
            self.worker.kill()  # Ray keeps the name of one that died for as long as somebody has its handle
        else:
            return True
        try:
            self.worker = _opened(self._run)
        except ValueError:
            return False
        return True

    def close(self) -> None:
        """The name is free again."""
        self.worker.kill()


def _claimed(run: str) -> Worker:
    limit = time.monotonic() + CLAIM_S
    while time.monotonic() < limit:
        try:
            return _opened(run)
        except ValueError:  # the name is taken
            try:
                answer_of(find_control(run).call("alive"), limit - time.monotonic())
            except (UserError, WorkerFailure):  # by what is left of one that ended
                time.sleep(LOOK_S)
            else:
                break
    raise UserError(f"name {run}: a run of this name is going on at this cluster; give another name=, or wait for it")


def _opened(run: str) -> Worker:
    """On the driver's node, so that no other node's end takes it away.

    Raises:
        ValueError: the name is taken.
    """
    name = _name(run)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = ray.remote(Control).options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here)
    return Worker(name, options.remote())


def find_control(run: str) -> Worker:
    """The mailbox of a running run on the connected cluster.

    Raises:
        UserError: no run of this name is going on there.
    """
    try:
        return Worker(_name(run), ray.get_actor(_name(run), namespace=NAMESPACE))
    except ValueError as error:
        raise UserError(f"run {run}: no such run is going on at this cluster") from error


def answer_of(call: Call, limit_s: float) -> Any:
    """What a mailbox answers.

    Raises:
        WorkerFailure: it died, or gives no answer within ``limit_s``.
    """
    calls = RayCalls()
    if not calls.first_done([call], max(0.0, limit_s)):
        raise WorkerFailure(f"no answer within {limit_s:.0f} s", died=False)
    return calls.answer(call)


def ask(run: str, request: Request, config: ClusterConfig) -> None:
    """Ask something of a run that is going on.

    Raises:
        UserError: no cluster, or no such run there.
    """
    found = find_run(run, config.address)
    if found.address is None or found.name is None:
        raise UserError(f"run {run}: it is not going on; for a run on a cluster give --address or RAY_ADDRESS")
    with ray_session(config.model_copy(update={"address": found.address}), 0, found.auth):
        mailbox = find_control(found.name)
        limit = time.monotonic() + OPEN_AGAIN_S
        while True:
            try:
                answer_of(mailbox.call("ask", request), OPEN_AGAIN_S)
                return
            except WorkerFailure as failure:
                if time.monotonic() >= limit:
                    text = f"run {run}: its mailbox cannot be reached: {failure.reason}; it may have been heard"
                    raise UserError(text) from failure
                mailbox = _opened_again(found.name, run, limit)


def _opened_again(name: str, run: str, limit: float) -> Worker:
    """The mailbox in place of one that died.

    Raises:
        UserError: there is none until ``limit``.
    """
    while time.monotonic() < limit:
        time.sleep(LOOK_S)
        with suppress(UserError):
            return find_control(name)
    raise UserError(f"run {run}: it ended before it could be asked")


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
