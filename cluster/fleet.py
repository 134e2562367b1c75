"""The generation actors' lives: started, brought to the newest weights, run, watched, replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray
from ray.actor import ActorHandle

from buffer.client import ReplayBuffer
from buffer.errors import UserError
from cluster.transfer.publisher import Ack

MAX_REPLACEMENTS = 8
"""Actors that may die in one run before the run gives up: a cause that kills every actor must end it."""

TICK_S = 10.0


class State(Enum):
    STARTING = "starting"
    """The engine loads the model."""
    JOINING = "joining"
    """The newest weights are on their way to it."""
    RUNNING = "running"


@dataclass
class Member:
    """One actor and what it is expected to report next."""

    name: str
    handle: ActorHandle
    awaited: ray.ObjectRef
    state: State = State.STARTING
    version: int = -1
    """Newest weights version that it has acknowledged."""


@dataclass
class Fleet:
    """All generation actors of a run. Events are handled where the learner waits anyway: in ``wait``."""

    spawn: Callable[[str], ActorHandle]
    """Starts an actor of this name."""
    buffer: ReplayBuffer
    say: Callable[[str], None]
    retarget: Callable[[dict[str, ActorHandle]], ray.ObjectRef] | None = None
    """Names the actors that weights are sent to; None where no learner runs."""
    send: Callable[[], ray.ObjectRef] | None = None
    """Sends the newest staged weights; the reference gives a list of Ack."""
    control: ActorHandle | None = None
    """Mailbox through which a person asks for more or fewer actors."""
    members: dict[str, Member] = field(default_factory=dict)
    replaced: int = 0
    _sends: list[ray.ObjectRef] = field(default_factory=list)
    _started: int = 0
    _request: ray.ObjectRef | None = None

    def __post_init__(self) -> None:
        if self.control:
            self._request = self.control.actors_wanted.remote()

    def add(self, count: int) -> None:
        """Start actors; they join by themselves once their engine is up."""
        for _ in range(count):
            name = f"actor-{self._started}"
            self._started += 1
            handle = self.spawn(name)
            self.members[name] = Member(name, handle, handle.ready.remote())

    def remove(self, count: int) -> None:
        """Let the newest actors finish what they have in hand and leave."""
        running = [m for m in self.members.values() if m.state is State.RUNNING]
        for member in running[len(running) - count :]:
            member.handle.drain.remote()

    def publish(self) -> None:
        """Send the newest staged weights to everyone, in the background."""
        assert self.send is not None
        self._sends.append(self.send())

    def holds(self, version: int) -> bool:
        """Whether every actor that generates has acknowledged ``version`` or a newer one."""
        return all(m.version >= version for m in self.members.values() if m.state is State.RUNNING)

    def wait_for_version(self, version: int) -> None:
        """Block until ``holds(version)`` and at least one actor generates.

        The second condition keeps a run whose actors all died from training on without them.
        """
        while not (self.holds(version) and any(m.state is State.RUNNING for m in self.members.values())):
            self._settle(self._ready([], None))

    def wait(self, ref: ray.ObjectRef, tick: Callable[[], None] = lambda: None) -> Any:
        """``ray.get(ref)``, meanwhile looking after the actors; ``tick`` is called every few seconds."""
        while True:
            done = self._ready([ref], TICK_S)
            self._settle([d for d in done if d != ref])
            if ref in done:
                return ray.get(ref)
            tick()

    def poll(self) -> None:
        """Handle what has happened without waiting."""
        self._settle(self._ready([], 0))

    def call(self, method: str) -> None:
        """Call a method on all running actors and wait (sleep, wake)."""
        ray.get([getattr(m.handle, method).remote() for m in self.members.values() if m.state is State.RUNNING])

    def shutdown(self) -> None:
        for member in self.members.values():
            ray.kill(member.handle)
        self.members.clear()

    def _ready(self, refs: list[ray.ObjectRef], timeout: float | None) -> list[ray.ObjectRef]:
        waiting = [*refs, *self._sends, *(m.awaited for m in self.members.values())]
        if self._request:
            waiting.append(self._request)
        if not waiting:
            return []
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        return done

    def _settle(self, done: list[ray.ObjectRef]) -> None:
        for ref in done:
            if ref in self._sends:
                self._sends.remove(ref)
                self._acknowledge(ray.get(ref))
                continue
            if ref == self._request:
                self._resize(ray.get(ref))
                continue
            member = next((m for m in self.members.values() if m.awaited == ref), None)
            if member:
                self._advance(member)

    def _advance(self, member: Member) -> None:
        try:
            result = ray.get(member.awaited)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            self.replace(member, _reason(error), error)
            return
        match member.state:
            case State.STARTING:
                member.state = State.JOINING
                if self.send is None:
                    self._run(member)
                    return
                # The group serves both calls in order: first it knows the newcomer, then it sends to it.
                self._retarget()
                member.awaited = self.send()
            case State.JOINING:
                self._acknowledge(result)
            case State.RUNNING:
                # run() returns when the buffer is closed or the actor was asked to leave.
                self._dismiss(member)

    def _acknowledge(self, acks: list[Ack]) -> None:
        for ack in acks:
            member = self.members.get(ack.actor)
            if member is None:
                continue
            if ack.error:
                self.replace(member, f"weights {ack.version} did not arrive: {ack.error}")
                continue
            member.version = max(member.version, ack.version)
            if member.state is State.JOINING:
                self._run(member)

    def _run(self, member: Member) -> None:
        member.state = State.RUNNING
        member.awaited = member.handle.run.remote()

    def replace(self, member: Member, reason: str, error: Exception | None = None) -> None:
        """Drop an actor, hand its work to the others, start a new one.

        Raises:
            UserError: too many actors of this run have failed, or the cause is the user's to mend.
        """
        if self.replaced >= MAX_REPLACEMENTS:
            after = f"after {self.replaced} replacements"
            raise UserError(f"generation: {member.name} failed, {after}: {reason}") from error
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        self.replaced += 1
        self.say(f"{member.name} {member.state.value} failed ({reason}); a new actor takes over its work")
        self._dismiss(member)
        self.add(1)

    def _dismiss(self, member: Member) -> None:
        del self.members[member.name]
        ray.kill(member.handle)
        self.buffer.release(member.name)
        self._retarget()

    def _retarget(self) -> None:
        if self.retarget:
            self.retarget({m.name: m.handle for m in self.members.values() if m.state is not State.STARTING})

    def _resize(self, change: int) -> None:
        assert self.control is not None
        self._request = self.control.actors_wanted.remote()
        self.say(f"{abs(change)} actor(s) {'join' if change > 0 else 'leave'} on request")
        self.add(change) if change > 0 else self.remove(-change)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:300]
