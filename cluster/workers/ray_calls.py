"""The rim to Ray: calls of workers go out here, and come back as an answer or as a failure in the program's terms.

What decides (actor pool, failure policy, learner group, attempts) is plain code above this file and is tested without
Ray.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.workers.resources import Bundle, totals
from contracts.errors import UserError, first_line, last_line, named

NAMESPACE = "sapo"
"""Ray's namespace of everything that a run starts by name."""

TICK_S = 10.0
"""Longest stretch of waiting after which those who wait look around."""
GRACE_S = 5.0
"""After a first failure, how long the others of a group are listened to: a rank that dies is often first noticed by
another, whose collective breaks."""

BROKEN = re.compile(r"gloo/transport/|ncclRemoteError|ncclSystemError|Connection (?:reset|closed|refused)|Broken pipe")
"""In errors of gloo, of NCCL and of torch's store."""
USER_ERROR = f"{UserError.__module__}.{UserError.__qualname__}"

Call: TypeAlias = ray.ObjectRef
"""A call under way."""


class WorkerFailure(Exception):
    """A worker's process is gone (``died``), or its call raised something that is not the user's to mend.

    ``elsewhere``: the worker is well, and another that it waited for is gone. ``broken``: it raised as a connection to
    another broke.
    """

    def __init__(self, reason: str, *, died: bool, elsewhere: bool = False, broken: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.died, self.elsewhere, self.broken = reason, died, elsewhere, broken


class Calls(Protocol):
    """Waits for calls. Who waits through an actor pool looks after its actors meanwhile."""

    def first_done(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
        """Those of ``calls`` that are done; none if ``timeout_s`` is over first."""

    def answer(self, call: Call) -> Any:
        """The answer of a call, waited for.

        Raises:
            UserError: the worker's own.
            WorkerFailure: the worker died, or raised anything else.
        """


class RayCalls:
    """Ray's calls, nothing else meanwhile."""

    def first_done(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
        if not calls:
            return []
        done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        return list(done)

    def answer(self, call: Call) -> Any:
        try:
            return ray.get(call)
        except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
            raise failure_of(error) from error


def failure_of(error: Exception) -> UserError | WorkerFailure:
    """What an error of Ray's means."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError):
            return _elsewhere(cause)
        shown = cause if isinstance(cause, BaseException) else error
        return WorkerFailure(named(shown, last_line), died=False, broken=_broke(shown))
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return WorkerFailure("the replay buffer gives no answer", died=True)
    if getattr(error, "actor_init_failed", False):
        # Ray keeps no more of it than the text of a traceback, whose last line is the error.
        kind, _, message = last_line(error).partition(": ")
        return UserError(message) if kind == USER_ERROR else WorkerFailure(last_line(error), died=False)
    # Ray says in a line of its message which actor it was.
    names = [line.partition(":")[2].strip() for line in str(error).splitlines() if line.strip().startswith("name:")]
    return WorkerFailure(": ".join([*names[:1], first_line(error)]), died=True)


def _broke(error: BaseException) -> bool:
    """Whether an error is of a connection between processes. PyTorch's backends tell so by their words alone."""
    return isinstance(error, ConnectionError) or (isinstance(error, RuntimeError) and bool(BROKEN.search(str(error))))


def _elsewhere(cause: ray.exceptions.RayError) -> UserError | WorkerFailure:
    """What became of whom a task waited for. A connection that broke says nothing of the other one: it lives."""
    found = failure_of(cause)
    if isinstance(found, WorkerFailure) and isinstance(cause, ray.exceptions.ActorDiedError):
        return WorkerFailure(found.reason, died=found.died, elsewhere=True)
    return found


def wait_for(call: Call, calls: Calls, tick: Callable[[], None] = lambda: None, every_s: float = TICK_S) -> Any:
    """The answer of one call; ``tick`` is called every ``every_s`` seconds of waiting."""
    while call not in calls.first_done([call], every_s):
        tick()
    return calls.answer(call)


def wait_for_all(
    pending: Sequence[Call],
    calls: Calls,
    limit_s: float = float("inf"),
    overdue: Callable[[list[int]], str] = lambda missing: "no answer",
    clock: Callable[[], float] = time.monotonic,
) -> list[Any]:
    """The answers of a group's calls, in order.

    A group works in step: one that fails leaves the others waiting in a collective. So the first failure ends the
    wait, and after GRACE_S the most telling one is raised: an error in the worker's own words, else a death, else what
    came first.

    Args:
        limit_s: longest wait, in seconds.
        overdue: says of the calls at these positions why they are given up; called when ``limit_s`` is over.

    Raises:
        UserError: a worker's own.
        WorkerFailure: a worker died, raised anything else, or did not answer in time.
    """
    answers: dict[Call, Any] = {}
    failures: list[UserError | WorkerFailure] = []
    left = list(pending)
    deadline = clock() + limit_s
    while left and clock() < deadline:
        for call in calls.first_done(left, min(TICK_S, max(0.0, deadline - clock()))):
            left.remove(call)
            try:
                answers[call] = calls.answer(call)
            except (UserError, WorkerFailure) as failure:
                failures.append(failure)
                deadline = min(deadline, clock() + GRACE_S)
    if failures:
        raise min(failures, key=_telling)
    if left:
        raise WorkerFailure(overdue([pending.index(call) for call in left]), died=True)
    return [answers[call] for call in pending]


def _telling(failure: UserError | WorkerFailure) -> int:
    return 0 if isinstance(failure, UserError) else 1 if failure.died else 2


@dataclass(frozen=True)
class Worker:
    """One actor process of a run."""

    name: str
    handle: ActorHandle

    def call(self, method: str, *arguments: object, lane: str | None = None) -> Call:
        """``lane``: one of the actor's concurrency groups, whose calls run beside the others."""
        remote = getattr(self.handle, method)
        return (remote.options(concurrency_group=lane) if lane else remote).remote(*arguments)

    def tell(self, method: str, *arguments: object) -> None:
        """A call whose answer nobody waits for."""
        getattr(self.handle, method).options(num_returns=0).remote(*arguments)

    def kill(self) -> None:
        ray.kill(self.handle)


@dataclass(frozen=True)
class Placement:
    """Room on the cluster for workers: a placement group, asked for and perhaps not there yet."""

    bundles: list[Bundle]
    group: PlacementGroup
    seat: int = 0
    """The bundle that ``start`` takes by default."""
    vacate: Callable[[], None] | None = None
    """In place of giving up the group, where others have it too."""

    @classmethod
    def ask(cls, bundles: list[Bundle], strategy: str, name: str) -> Placement:
        return cls(bundles, placement_group(bundles, strategy=strategy, name=name))

    def ready(self) -> Call:
        """Answers when the cluster has made room."""
        return self.group.ready()

    def require(self, timeout_s: float, purpose: str) -> None:
        """Wait for the room.

        Raises:
            UserError: it is not there within ``timeout_s``.
        """
        if not self.group.wait(timeout_s):
            self.remove()
            raise UserError(
                f"cluster: {purpose} needs {len(self.bundles)} x {self.bundles[0]}, not placed within {timeout_s:g} s; "
                f"{totals()}"
            )

    def start(
        self,
        kind: type,
        *arguments: object,
        name: str,
        seat: int | None = None,
        takes: Bundle | None = None,
        environment: dict[str, str],
        concurrent_calls: int | None = None,
        lanes: dict[str, int] | None = None,
    ) -> Worker:
        """Start a process with an instance of ``kind``.

        Args:
            seat: number of its bundle.
            takes: its part of the bundle; default: all of it.
            concurrent_calls: how many awaitable calls may be open, of an asynchronous class.
            lanes: concurrency groups with the number of calls that each runs at a time.
        """
        actor = ray.remote(concurrency_groups=lanes)(kind) if lanes else ray.remote(kind)
        options: dict[str, Any] = {"max_concurrency": concurrent_calls} if concurrent_calls else {}
        bundle = self.seat if seat is None else seat
        share = self.bundles[bundle] if takes is None else takes
        handle = actor.options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=share["CPU"],
            num_gpus=share.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, bundle),
            runtime_env={"env_vars": environment},
            **options,
        ).remote(*arguments)
        return Worker(name, handle)

    def remove(self) -> None:
        if self.vacate is None:
            remove_placement_group(self.group)
        else:
            self.vacate()
