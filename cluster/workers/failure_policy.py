"""Decides what a failure means: the worker is replaced, the attempt begins anew, or the run ends. Plain code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
    cause: UserError | None = None
    """The actor's own error, where it is the user's to mend."""


@dataclass(frozen=True)
class AttemptFailed:
    """A learner rank, the coordinator or a shard of the buffer died or failed: the attempt can't go on."""

    reason: str
    died: bool
    """A process is gone; otherwise it raised, and would do so again."""
    step: int
    """Optimizer steps done when it happened."""
    resumable: bool
    """Whether there is a checkpoint to go on from."""


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


@dataclass(frozen=True)
class Limits:
    """How much is tried before a run gives up."""

    replacements: int = 8
    """Actors that may fail in one run."""
    without_progress: int = 2
    """Replacements in a row between which no plan index was finished: the cause hits every actor."""
    restarts: int = 3
    """Attempts that may fail in one run."""


class FailurePolicy:
    """One for a run: it remembers what has failed before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.replaced = 0
        """Actors replaced so far."""
        self.restarted = 0
        """Attempts begun anew so far."""
        self._without_progress = 0
        self._finished = -1
        """Plan indices accounted for when an actor last failed."""
        self._last_step = -1
        """Where the last attempt failed."""

    def decide(self, event: ActorFailed | AttemptFailed) -> Decision:
        return self._on_actor(event) if isinstance(event, ActorFailed) else self._on_attempt(event)

    def _on_actor(self, event: ActorFailed) -> Decision:
        if event.cause:
            return Decision(Action.RAISE, event.cause)
        stalled = event.finished == self._finished
        self._without_progress = self._without_progress + 1 if stalled else 0
        self._finished = event.finished
        if self._without_progress >= self._limits.without_progress or self.replaced >= self._limits.replacements:
            count = self.replaced + 1
            text = f"generation: {count} actors failed, the last, {event.actor}, with: {event.reason}"
            return Decision(Action.RAISE, UserError(text))
        self.replaced += 1
        return Decision(Action.RETRY)

    def _on_attempt(self, event: AttemptFailed) -> Decision:
        again = event.step == self._last_step
        self._last_step = event.step
        if event.died and event.resumable and not again and self.restarted < self._limits.restarts:
            self.restarted += 1
            return Decision(Action.RESTART)
        times = f" {self.restarted + 1} times" if self.restarted else ""
        remedy = "; --resume goes on from the newest checkpoint" if event.resumable else ""
        return Decision(Action.RAISE, UserError(f"the run failed{times} at step {event.step}: {event.reason}{remedy}"))
