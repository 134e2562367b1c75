"""What is known of a run at one moment: a frozen record that crosses from the driver to whoever looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ActorLine:
    """One generation actor."""

    name: str
    state: str
    """As the pool has it: placing, starting, ready, joining, running."""
    version: int = -1
    """Newest weights that it has acknowledged; -1: none."""
    tokens: int = 0
    """Generated so far."""
    tokens_per_s: float = 0.0
    in_flight: int = 0
    idle: float | None = None
    """Share of the last half minute without any request; None: not known yet."""
    silent_s: float = 0.0
    """Seconds since it last answered."""


@dataclass(frozen=True)
class BufferLine:
    """The replay buffer."""

    size: int
    capacity: int
    leased: int
    inserted: int
    identical: int
    discarded: int
    failed: int
    evicted: int = 0


@dataclass(frozen=True)
class EventLine:
    """One line of the run's log."""

    time: float
    """Seconds since the epoch."""
    level: str
    message: str


@dataclass(frozen=True)
class Board:
    """All of it. Times are in seconds since the epoch."""

    run: str
    folder: str
    """On ``host``."""
    host: str
    method: str
    step: int
    """Optimizer steps done."""
    total_steps: int
    """0: not known."""
    doing: str
    """What the driver does now."""
    since: float
    written: float
    attempt: int = 1
    step_s: float | None = None
    """Mean over the last steps."""
    tokens_per_s: float = 0.0
    """Trained, over the last steps."""
    learner_idle: dict[str, float] = field(default_factory=dict)
    """Share of the last steps' time by cause."""
    bottleneck: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Of the newest step."""
    buffer: BufferLine | None = None
    """None where there is none."""
    actors: tuple[ActorLine, ...] = ()
    events: tuple[EventLine, ...] = ()
    """The last ones."""
    sample: dict[str, Any] | None = None
    """A pair of one of the last batches, as in samples.jsonl."""

    @property
    def left_s(self) -> float | None:
        """Seconds until the last step, at the speed of the last ones."""
        if self.step_s is None or not self.total_steps:
            return None
        return (self.total_steps - self.step) * self.step_s
