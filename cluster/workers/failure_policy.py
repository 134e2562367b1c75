"""Decides what a failure means: the worker is replaced, the attempt begins anew, or the run ends. Plain code."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from contracts.errors import UserError


@dataclass(frozen=True)
class ActorFailed:
    """A generation actor died, its engine failed, weights did not reach it, or it computes with others."""

    actor: str
    state: str
    """What it was doing."""
    reason: str
    finished: int
    """Plan indices accounted for until now, over all actors."""
    number: int
    """Which actor of the attempt it is, in the order in which they were asked for."""
    asked_for: int
    """How many were until now."""
    cause: UserError | None = None
    """The actor's own error, where it is the user's to mend."""


@dataclass(frozen=True)
class AttemptFailed:
    """A learner rank, the coordinator or a shard of the buffer died or failed: the attempt can't go on."""

    reason: str
    died: bool
    """A process is gone; otherwise it raised."""
    step: int
    """Optimizer steps done when it happened."""
    broken: bool = False
    """What it raised is of a connection that broke."""


class Action(Enum):
    RETRY = "retry"
    """Replace the worker; the attempt goes on."""
    RESTART = "restart"
    """End the attempt; a new one goes on from the newest checkpoint."""
    RAISE = "raise"
    """End the run."""


@dataclass(frozen=True)
class Decision:
    """What to do, and where the run ends the error that says why."""

    action: Action
    error: UserError | None = None
    pause_s: float = 0.0
    """Wait before it: what has just died may need a moment, such as a node that comes back."""


@dataclass(frozen=True)
class Limits:
    """How much is tried before a run gives up."""

    replacements: int = 8
    """Failures of actors within ``window`` steps. Those that fail together, with their node, are one."""
    together_s: float = 30.0
    """Actors that fail within so many seconds, and are no replacements, fail together."""
    without_progress: int = 2
    """Replacements of replacements in a row between which no plan index was finished: the cause hits every actor. Those
    that fail together, with their node, are no such row."""
    restarts: int = 5
    """Attempts that may fail within ``window`` steps."""
    window: int = 1000
    """Optimizer steps."""
    backoff_s: float = 2.0
    """Pause before a new attempt; doubled for each one in the window."""
    longest_backoff_s: float = 120.0
    errors_at_a_step: int = 2
    """Attempts in a row that may not end at one step, if the last one raised an error: nobody was killed."""
    deaths_at_a_step: int = 3
    """The same, if a process of the last one was gone or a connection broke: nodes may be taken away twice at one step
    by chance."""


class FailurePolicy:
    """One for a run: it remembers what has failed before."""

    def __init__(self, limits: Limits, inserts_per_step: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """``inserts_per_step``: plan indices of an optimizer step."""
        self._limits, self._inserts_per_step, self._clock = limits, inserts_per_step, clock
        self.replaced = 0
        """Actors replaced so far."""
        self.restarted = 0
        """Attempts begun anew so far."""
        self._actors_failed: deque[int] = deque()
        """Steps at which actors failed within the window; together, once."""
        self._together, self._together_until = 0, -math.inf
        """Actors below this number were there at the last of these; until when they count with it."""
        self._attempts_failed: deque[int] = deque()
        self._begin_row()

    def _begin_row(self) -> None:
        self._without_progress = 0
        self._finished = -1
        """Plan indices accounted for when an actor last failed."""
        self._newer = 0
        """An actor of this number or above was asked for after the last failure that counts."""

    def decide(self, event: ActorFailed | AttemptFailed) -> Decision:
        return self._on_actor(event) if isinstance(event, ActorFailed) else self._on_attempt(event)

    def _on_actor(self, event: ActorFailed) -> Decision:
        if event.cause:
            return Decision(Action.RAISE, event.cause)
        if event.finished != self._finished:
            self._without_progress, self._finished, self._newer = 0, event.finished, event.asked_for
        elif event.number >= self._newer:
            self._without_progress, self._newer = self._without_progress + 1, event.asked_for
        if event.number >= self._together or self._clock() > self._together_until:
            self._within(self._actors_failed, event.finished // self._inserts_per_step)
            self._together, self._together_until = event.asked_for, self._clock() + self._limits.together_s
        recent = len(self._actors_failed)
        if self._without_progress >= self._limits.without_progress or recent > self._limits.replacements:
            text = f"generation: {recent} failure(s) of actors, the last, of {event.actor}, with: {event.reason}"
            return Decision(Action.RAISE, UserError(text))
        self.replaced += 1
        return Decision(Action.RETRY)

    def _on_attempt(self, event: AttemptFailed) -> Decision:
        self._begin_row()  # the next one's buffer counts from the start
        self._together = 0
        recent = self._within(self._attempts_failed, event.step)
        here = len(list(takewhile(lambda step: step == event.step, reversed(self._attempts_failed))))
        # What raises before the first step, or again and again at one step, is no accident of the machines.
        by_chance = event.died or event.broken
        limit = self._limits.deaths_at_a_step if by_chance else self._limits.errors_at_a_step
        hopeless = here >= limit or (event.step == 0 and not event.died)
        if not hopeless and recent <= self._limits.restarts:
            self.restarted += 1
            pause_s = self._limits.backoff_s * 2 ** (recent - 1)
            return Decision(Action.RESTART, pause_s=min(pause_s, self._limits.longest_backoff_s))
        times = f" {recent} times" if recent > 1 else ""
        return Decision(Action.RAISE, UserError(f"the run failed{times} at step {event.step}: {event.reason}"))

    def _within(self, failures: deque[int], step: int) -> int:
        """Note a failure at ``step``; how many there were within the window, this one included."""
        failures.append(step)
        while step - failures[0] >= self._limits.window:
            failures.popleft()
        return len(failures)
