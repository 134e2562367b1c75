"""The generation actors' lives: placed, started, brought to the newest weights, run, watched, replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group

from buffer.client import ReplayBuffer
from cluster.weights.publisher import Ack
from cluster.workers.actor_factory import ActorFactory
from contracts.errors import UserError

MAX_REPLACEMENTS = 8
"""Actors that may die in one run before the run gives up."""
MAX_FRUITLESS = 2
"""Replacements in a row between which no segment was finished: the cause kills every actor and must end the run."""

TICK_S = 10.0


class State(Enum):
    PLACING = "placing"
    """The cluster looks for cores and GPUs."""
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
    placement: PlacementGroup
    awaited: ray.ObjectRef | None
    """None: it waits for weights, which ``Fleet`` sends to all."""
    handle: ActorHandle | None = None
    state: State = State.PLACING
    version: int = -1
    """Newest weights version that it has acknowledged."""
    since: float = field(default_factory=time.monotonic)
    """When it was asked for."""


@dataclass
class Fleet:
    """All generation actors of a run. Events are handled where the learner waits anyway: in ``wait``."""

    factory: ActorFactory
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
    _fruitless: int = 0
    _finished: int = -1
    """Indices accounted for when an actor was last replaced."""
    _published: bool = False
    _targets: set[str] = field(default_factory=set)
    _sends: list[ray.ObjectRef] = field(default_factory=list)
    _started: int = 0
    _request: ray.ObjectRef | None = None

    def __post_init__(self) -> None:
        if self.control:
            self._request = self.control.actors_wanted.remote()

    def add(self, count: int) -> None:
        """Ask for actors; they join by themselves once they have a place and their engine is up."""
        for _ in range(count):
            name = f"actor-{self._started}"
            self._started += 1
            placement = self.factory.place(name)
            self.members[name] = Member(name, placement, placement.ready())

    def remove(self, count: int) -> None:
        """Let the newest actors finish what they have in hand and leave."""
        for member in self.running()[-count:]:
            member.handle.drain.remote()

    def running(self) -> list[Member]:
        """The actors that generate, oldest first."""
        return [m for m in self.members.values() if m.state is State.RUNNING]

    def publish(self) -> None:
        """Send the newest staged weights to everyone, in the background."""
        self._published = True
        for member in [m for m in self.members.values() if m.state is State.READY]:
            member.state = State.JOINING
        self._retarget()
        self._send()

    def held(self) -> int:
        """The newest version that every generating actor has acknowledged; -1 when there is none."""
        return min((m.version for m in self.running()), default=-1)

    def wait_for_version(self, version: int) -> None:
        """Block until every generating actor holds ``version`` or a newer one, and there is at least one.

        The second condition keeps a run whose actors all died from training on without them.

        Raises:
            UserError: no actor could be placed in time, or too many failed.
        """
        while self.held() < version:
            self._settle(self._ready([], TICK_S))
            self._refuse_unplaced()

    def wait(self, ref: ray.ObjectRef, tick: Callable[[], None] = lambda: None) -> Any:
        """``ray.get(ref)``, meanwhile looking after the actors; ``tick`` is called every few seconds."""
        while True:
            done = self._ready([ref], TICK_S)
            self._settle([d for d in done if d != ref])
            if ref in done:
                return ray.get(ref)
            self._refuse_unplaced()
            tick()

    def poll(self) -> None:
        """Handle what has happened without waiting."""
        while done := self._ready([], 0):
            self._settle(done)

    def call(self, method: str) -> list[Any]:
        """Call a method on all generating actors and wait for their answers; of those that died there is none."""
        answers = []
        for call in [getattr(m.handle, method).remote() for m in self.running()]:
            try:
                answers.append(ray.get(call))
            except ray.exceptions.RayActorError:
                continue  # ``run`` has failed with it, and that is where the actor is replaced
        return answers

    def shutdown(self) -> None:
        for member in self.members.values():
            _end(member)
        self.members.clear()

    def _ready(self, refs: list[ray.ObjectRef], timeout: float | None) -> list[ray.ObjectRef]:
        waiting = [*refs, *self._sends, *(m.awaited for m in self.members.values() if m.awaited)]
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
            ray.get(member.awaited)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            self.replace(member, _reason(error), error)
            return
        match member.state:
            case State.PLACING:
                member.state = State.STARTING
                member.handle = self.factory.spawn(member.name, member.placement)
                member.awaited = member.handle.ready.remote()
            case State.STARTING:
                self._welcome(member)
            case State.RUNNING:
                # run() returns when the buffer is closed or the actor was asked to leave.
                self._dismiss(member)

    def _welcome(self, member: Member) -> None:
        """Bring a started engine to the newest weights, if there is anybody to publish any."""
        member.awaited = None
        if self.send is None:
            self._run(member)
        elif self._published:
            member.state = State.JOINING
            self._retarget()
            self._send()
        else:
            member.state = State.READY

    def _send(self) -> None:
        assert self.send is not None
        # The group serves its calls in order: a newcomer that it was told of before gets what is sent now.
        self._sends.append(self.send())

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
        assert member.handle is not None
        member.awaited = member.handle.run.remote()

    def replace(self, member: Member, reason: str, error: Exception | None = None) -> None:
        """Drop an actor, hand its work to the others, start a new one.

        Raises:
            UserError: too many actors of this run have failed, or the cause is the user's to mend.
        """
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        stats = self.buffer.stats()
        finished = stats.inserted + stats.identical + stats.rejected + stats.failed
        self._fruitless = self._fruitless + 1 if finished == self._finished else 0
        self._finished = finished
        if self._fruitless >= MAX_FRUITLESS or self.replaced >= MAX_REPLACEMENTS:
            count = self.replaced + 1
            raise UserError(f"generation: {count} actors failed, the last, {member.name}, with: {reason}") from error
        self.replaced += 1
        self.say(f"{member.name} {member.state.value} failed ({reason}); a new actor takes over its work")
        self._dismiss(member)
        self.add(1)

    def _dismiss(self, member: Member) -> None:
        del self.members[member.name]
        _end(member)
        self.buffer.release(member.name)
        self._retarget()

    def _retarget(self) -> None:
        """Tell the group whom weights go to, if that has changed."""
        known = (State.JOINING, State.RUNNING)
        targets = {m.name: m.handle for m in self.members.values() if m.handle and m.state in known}
        if self.retarget and targets.keys() != self._targets:
            self._targets = set(targets)
            self.retarget(targets)

    def _resize(self, change: int) -> None:
        assert self.control is not None
        self._request = self.control.actors_wanted.remote()
        self.say(f"{abs(change)} actor(s) {'join' if change > 0 else 'leave'} on request")
        self.add(change) if change > 0 else self.remove(-change)

    def _refuse_unplaced(self) -> None:
        """A run without any actor that has its place does not wait for ever."""
        limit = self.factory.config.cluster.start_timeout_s
        placing = [m for m in self.members.values() if m.state is State.PLACING]
        if placing and len(placing) == len(self.members) and time.monotonic() - placing[0].since > limit:
            total = ray.cluster_resources()
            raise UserError(
                f"cluster: a generation actor needs {self.factory.bundle}, not placed within {limit:g} s; the cluster "
                f"has CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g} for learner and actors"
            )


def _end(member: Member) -> None:
    if member.handle:
        ray.kill(member.handle)
    remove_placement_group(member.placement)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:300]
