"""The generation actors' lives: placed, started, brought to the newest weights, run, watched, replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.messages import ActorStatus
from buffer.messages import BufferStats
from cluster.workers.failure_policy import Action, ActorFailed, FailurePolicy
from cluster.workers.inbox import Inbox
from cluster.workers.member import Member, State, end_all
from cluster.workers.ray_calls import TICK_S, Call, Calls, Placement, RayCalls, Worker, WorkerFailure
from cluster.workers.resources import totals
from cluster.workers.stacks import log_stacks
from cluster.workers.watch import Watch
from contracts.errors import UserError
from learner.messages import Ack

ANSWER_S = 5.0
"""Longest wait for answers that take an actor milliseconds."""
LOOK_S = 1.0
"""Who waits for actors looks so often whether that is still wanted, in seconds. Weights have that long in any case."""


class Factory(Protocol):
    """Makes actors."""

    def place(self, name: str) -> Placement: ...

    def spawn(self, name: str, placement: Placement) -> Worker: ...

    def adopt(self, worker: Worker) -> Call: ...


class Leases(Protocol):
    """What the pool asks of the buffer."""

    def stats(self) -> BufferStats: ...

    def release(self, actor: str) -> list[int]: ...


class Sync(Protocol):
    """What carries weights from the learner to the actors."""

    def retarget(self, actors: dict[str, Worker]) -> None: ...

    def send(self) -> Call: ...

    def stacks(self) -> tuple[str, Call]: ...


@dataclass
class ActorPool:
    """All generation actors of an attempt. Events are handled where somebody waits through the pool."""

    factory: Factory
    buffer: Leases
    policy: FailurePolicy
    log: logging.Logger
    start_timeout_s: float
    """Longest wait for the cluster to place the first actor."""
    stall_s: float = 300.0
    """No actor is given up for a stretch without progress shorter than this, in seconds."""
    sync: Sync | None = None
    """None where no learner runs: the actors keep the starting weights."""
    inbox: Inbox | None = None
    """Through which a person asks for more or fewer actors."""
    calls: Calls = field(default_factory=RayCalls)
    clock: Callable[[], float] = time.monotonic
    fixed: bool = False
    """Each actor has its place beside a rank: no more and no fewer are wanted."""
    fewer_after_s: float | None = None
    """After the last actor lost its place, how long another one is waited for before the attempt ends, in seconds: the
    next one may have fewer ranks. None: as long as for the first one."""
    send_limit_s: float = float("inf")
    """Longest wait for a publication, in seconds. The sender limits each transfer by itself, unless it stands still."""
    _sending_since: float = field(default=0.0, init=False)
    _had_place: bool = field(default=False, init=False)
    _held_back: bool = field(default=False, init=False)
    members: dict[str, Member] = field(default_factory=dict, init=False)
    _published: bool = field(default=False, init=False)
    _targets: set[str] = field(default_factory=set, init=False)
    _sends: list[Call] = field(default_factory=list, init=False)
    _started: int = field(default=0, init=False)

    # ---- what a run asks for --------------------------------------------------------------------------------

    def add(self, count: int) -> None:
        """Ask for actors; they join by themselves once they have a place and their engine is up."""
        for _ in range(count):
            name = f"actor-{self._started}"
            self._started += 1
            placement = self.factory.place(name)
            self.members[name] = Member(name, placement, placement.ready(), self.clock())

    def adopt(self, survivors: Sequence[Member]) -> None:
        """Take over actors that an earlier attempt left, engines and all; one that does not answer is replaced."""
        for survivor in survivors:
            number = self._started
            self._started = max(number, _number(survivor.name) + 1)
            self._had_place = True
            adoption = self.factory.adopt(survivor.process)
            self.members[survivor.name] = Member(
                survivor.name, survivor.placement, adoption, self.clock(), survivor.worker, State.STARTING
            )

    def surrender(self) -> list[Member]:
        """Give up the actors whose engine is up, for ``adopt``; they are this pool's no more."""
        up = (State.READY, State.JOINING, State.RUNNING)
        survivors = [member for member in self.members.values() if member.state in up and not member.leaving]
        for survivor in survivors:
            del self.members[survivor.name]
        return survivors

    def remove(self, count: int) -> int:
        """Let the newest actors leave, those that generate when they have finished their work; one stays.

        Returns:
            How many leave.
        """
        staying = [member for member in self.members.values() if not member.leaving]
        # Who has no work yet goes first, above all who has no place: it may never get one.
        states = list(State)
        staying.sort(key=lambda member: (-states.index(member.state), _number(member.name)))
        leaving = staying[max(1, len(staying) - count) :]
        for member in reversed(leaving):
            if member.state is State.RUNNING:
                member.leaving = True
                member.process.call("drain")
            else:
                self._dismiss(member)
        if left := len(leaving):
            self.log.info("%d actor(s) leave on request", left, extra={"event": "resized", "actors": -left})
        if left < count:
            self.log.warning("%d actor(s) asked to leave: one stays", count)
        return left

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

    def held_version(self) -> int:
        """The newest version that every generating actor has acknowledged; -1 when there is none."""
        return min((m.version for m in self.running()), default=-1)

    def wait_for_version(self, version: int, unless: Callable[[], bool] = lambda: False) -> None:
        """Block until every generating actor holds ``version`` or a newer one, and there is at least one; or until
        ``unless`` says that it is not wanted any more.

        The second condition keeps a run whose actors all died from training on without them.

        Raises:
            UserError: no actor could be placed in time, or too many failed.
        """
        looked = self.clock()
        while self.held_version() < version and not (self.clock() - looked >= LOOK_S and unless()):
            self.first_done([], LOOK_S)

    def poll(self) -> None:
        """Handle what has happened without waiting."""
        while done := self.calls.first_done(self._awaited(), 0):
            self._settle(done)

    def statuses(self) -> list[ActorStatus]:
        """Of all generating actors that answer now. What is to be done with the others is decided elsewhere: ``run``
        fails with one that died, and each is watched."""
        asked = [member.process.call("status") for member in self.running()]
        answers, deadline = [], self.clock() + ANSWER_S
        for call in asked:
            if self.calls.first_done([call], max(0.0, deadline - self.clock())):
                with suppress(WorkerFailure):
                    answers.append(self.calls.answer(call))
        return answers

    def clear_gpus(self) -> None:
        """The engines leave the GPUs to the learner; none starts until ``use_gpus``.

        Raises:
            UserError: as ``wait_for_version`` does.
        """
        while any(m.state in (State.PLACING, State.PLACED, State.STARTING, State.JOINING) for m in self.all_members()):
            self.first_done([], TICK_S)
        self._held_back = True
        sleeping = [(m, m.process.call("sleep")) for m in self.all_members()]
        for member, call in sleeping:
            if not self.calls.first_done([call], self.stall_s):
                self.replace(member, f"no answer to sleep within {self.stall_s:.0f} s")
                continue
            try:
                self.calls.answer(call)
            except WorkerFailure as failure:
                if not failure.died:
                    raise
                if member.awaited is None:  # nobody would notice
                    self.replace(member, failure.reason)

    def use_gpus(self) -> None:
        """The learner has left the GPUs: the next publication wakes the engines up, and new ones may start."""
        self._held_back = False
        for member in [m for m in self.all_members() if m.state is State.PLACED]:
            self._spawn(member)

    def replace(self, member: Member, reason: str, cause: UserError | None = None) -> None:
        """Drop an actor, hand its work to the others, start a new one.

        Raises:
            UserError: the failure policy ends the run.
        """
        if member.leaving:
            self.log.info("%s failed while it left (%s); the others take over its work", member.name, reason)
            self._dismiss(member)
            return
        stats = self.buffer.stats()
        failed = ActorFailed(
            member.name, member.state.value, reason, stats.accounted, _number(member.name), self._started, cause
        )
        decision = self.policy.decide(failed)
        if decision.action is Action.RAISE:
            assert decision.error is not None
            raise decision.error
        self.log.warning(
            "%s %s failed (%s); a new actor takes over its work",
            member.name,
            member.state.value,
            reason,
            extra={"event": "actor replaced", "actor": member.name},
        )
        self._dismiss(member)
        self.add(1)

    def dismiss_all(self) -> None:
        """End every actor at once: whatever it still does is nobody's, and its work is free again."""
        for member in self.all_members():
            self._dismiss(member)

    def shutdown(self) -> None:
        end_all(self.members.values())
        self.members.clear()

    # ---- waiting, as ``Calls`` ------------------------------------------------------------------------------

    def first_done(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
        """Those of ``calls`` that are done; meanwhile the actors are looked after.

        Raises:
            UserError: no actor could be placed in time, or too many failed.
            WorkerFailure: the last actor's place is lost, and there may be one on fewer ranks' nodes; or the sender
                of weights stands still.
        """
        done = self.calls.first_done([*calls, *self._awaited()], timeout_s)
        self._settle([call for call in done if call not in calls])
        self._validate_sent()
        self._validate_placed()
        self._replace_stalled()
        return [call for call in done if call in calls]

    def answer(self, call: Call) -> Any:
        return self.calls.answer(call)

    # ---- events ---------------------------------------------------------------------------------------------

    def _awaited(self) -> list[Call]:
        waiting = [*self._sends, *(m.awaited for m in self.members.values() if m.awaited is not None)]
        return waiting if self.inbox is None or self.inbox.awaited is None else [*waiting, self.inbox.awaited]

    def _settle(self, done: Sequence[Call]) -> None:
        for call in done:
            if call in self._sends:
                self._sends.remove(call)
                self._sending_since = self.clock()
                self._acknowledge(self.calls.answer(call))
            elif self.inbox and call == self.inbox.awaited:
                self.inbox.take()
            elif member := next((m for m in self.members.values() if m.awaited == call), None):
                self._advance(member, call)
        if self.inbox:
            if self.inbox.awaited is None:
                self.inbox.poll()
            # Also what the loop took from it between two steps.
            while change := self.inbox.next_change():
                self.inbox.changed(self._resize(change))

    def _advance(self, member: Member, call: Call) -> None:
        try:
            self.calls.answer(call)
        except UserError as error:
            self.replace(member, str(error), error)
            return
        except WorkerFailure as failure:
            if failure.elsewhere:  # the buffer: the attempt ends with it, and the engine serves the next one
                raise
            self.replace(member, failure.reason)
            return
        match member.state:
            case State.PLACING if self._held_back:
                member.state, member.awaited = State.PLACED, None
            case State.PLACING:
                self._spawn(member)
            case State.STARTING:
                self._welcome(member)
            case State.RUNNING:
                # run() returns when the buffer is closed or the actor was asked to leave.
                self._dismiss(member)

    def _replace_stalled(self) -> None:
        for member in self.running():
            if member.watch and (complaint := member.watch.complaint()):
                if member.watch.answers:
                    asked = {member.name: member.process.call("stacks")}
                    log_stacks(asked, self.calls, self.log, "stands still")
                    complaint += "; stacks are in run.log"
                self.replace(member, complaint)

    def all_members(self) -> list[Member]:
        """As they are now; another thread may ask too."""
        return list(self.members.values())

    def _spawn(self, member: Member) -> None:
        self._had_place = True
        member.state = State.STARTING
        member.worker = self.factory.spawn(member.name, member.placement)
        member.awaited = member.worker.call("ready")

    def _welcome(self, member: Member) -> None:
        """Bring a started engine to the newest weights, if there is anybody to publish any."""
        member.awaited = None
        if self.sync is None:
            self._run(member)
        elif self._published:
            member.state = State.JOINING
            self._retarget()
            self._send()
        else:
            member.state = State.READY

    def _send(self) -> None:
        assert self.sync is not None
        if not self._sends:
            self._sending_since = self.clock()
        # The group serves its calls in order: a newcomer that it was told of before gets what is sent now.
        self._sends.append(self.sync.send())

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
        member.awaited = member.process.call("run")
        member.watch = Watch(member.process, self.calls, self.stall_s, self.clock)

    def _dismiss(self, member: Member) -> None:
        del self.members[member.name]
        end_all([member])
        self.buffer.release(member.name)
        self._retarget()

    def _retarget(self) -> None:
        """Tell the learner whom weights go to, if that has changed."""
        known = (State.JOINING, State.RUNNING)
        targets = {m.name: m.worker for m in self.members.values() if m.worker and m.state in known}
        if self.sync and targets.keys() != self._targets:
            self._targets = set(targets)
            self.sync.retarget(targets)

    def _resize(self, change: int) -> int:
        """Returns how many actors more are wanted from now on."""
        if self.fixed:
            self.log.warning("%d actor(s) asked for: each shares a rank's GPU, so their number stays", change)
            return 0
        if change < 0:
            return -self.remove(-change)
        self.add(change)
        self.log.info("%d actor(s) join on request", change, extra={"event": "resized", "actors": change})
        return change

    def _validate_sent(self) -> None:
        """A run does not wait for ever for weights that nobody sends."""
        if self.sync and self._sends and (waited_s := self.clock() - self._sending_since) > self.send_limit_s:
            name, asked = self.sync.stacks()
            log_stacks({name: asked}, self.calls, self.log, f"has sent no weights for {waited_s:.0f} s")
            raise WorkerFailure(f"{name} has sent no weights within {waited_s:.0f} s; stacks are in run.log", died=True)

    def _validate_placed(self) -> None:
        """A run without any actor that has its place does not wait for ever."""
        placing = [m for m in self.members.values() if m.state is State.PLACING]
        if not placing or len(placing) < len(self.members):
            return
        waited_s = self.clock() - placing[0].since
        if self._had_place and self.fewer_after_s is not None and waited_s > self.fewer_after_s:
            raise WorkerFailure(f"no place for any actor since {waited_s:.0f} s", died=True)
        if waited_s > self.start_timeout_s:
            needs = placing[0].placement.bundles[0]
            raise UserError(
                f"cluster: a generation actor needs {needs}, not placed within {self.start_timeout_s:g} s; {totals()} "
                "for learner and actors"
            )


def _number(name: str) -> int:
    """Of an actor, by its name."""
    return int(name.rpartition("-")[2])
