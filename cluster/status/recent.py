"""What the last steps and the last half minute say: speed, shares of the time, who waits for whom."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from actors.messages import ActorStatus
from cluster.reports.bottleneck import Shares

STEPS = 20
WINDOW_S = 30.0
CAUSES = {"time/draw_wait_s": "pairs", "time/weights_wait_s": "weights", "time/publish_s": "publication"}
"""What a learner waits for, by the metric that has its seconds."""

Figures = Mapping[str, float | None]


def seconds_of(steps: Sequence[Figures], name: str) -> float:
    """A time metric summed over steps; one that a step lacks is 0."""
    return sum(step.get(name) or 0.0 for step in steps)


def learner_idle(steps: Sequence[Figures]) -> dict[str, float]:
    """Share of the steps' time that the learner waited, by cause."""
    whole = seconds_of(steps, "time/step_s")
    return {cause: seconds_of(steps, name) / whole for name, cause in CAUSES.items()} if whole else {}


def shares(steps: Sequence[Figures], actors_idle: Sequence[float]) -> Shares:
    """Of the last steps, with the share of the time in which each actor stood still."""
    wall_s = seconds_of(steps, "time/step_s")
    return Shares(
        wall_s=wall_s,
        learner_busy_s=seconds_of(steps, "time/train_s"),
        draw_wait_s=seconds_of(steps, "time/draw_wait_s"),
        weights_wait_s=seconds_of(steps, "time/weights_wait_s"),
        publish_s=seconds_of(steps, "time/publish_s"),
        actor_wait_s=wall_s * sum(actors_idle) / max(len(actors_idle), 1),
        actors=len(actors_idle),
    )


class ActorHistory:
    """An actor's answers of the last half minute."""

    def __init__(self) -> None:
        self._answers: deque[tuple[float, ActorStatus]] = deque()

    def add(self, now: float, status: ActorStatus) -> None:
        """``now``: seconds of any clock."""
        if self._answers and status.tokens < self._answers[-1][1].tokens:
            self._answers.clear()  # it works for another attempt and counts anew
        self._answers.append((now, status))
        while len(self._answers) > 2 and self._answers[0][0] < now - WINDOW_S:
            self._answers.popleft()

    @property
    def newest(self) -> ActorStatus | None:
        return self._answers[-1][1] if self._answers else None

    def silent_s(self, now: float) -> float:
        """Seconds since the newest answer; 0 before the first."""
        return now - self._answers[-1][0] if self._answers else 0.0

    @property
    def idle(self) -> float | None:
        """Share of the time; None until there are two answers."""
        return self._rate(lambda status: status.idle_s)

    @property
    def tokens_per_s(self) -> float:
        return self._rate(lambda status: float(status.tokens)) or 0.0

    def _rate(self, of: Callable[[ActorStatus], float]) -> float | None:
        if len(self._answers) < 2:
            return None
        (first_s, first), (last_s, last) = self._answers[0], self._answers[-1]
        return (of(last) - of(first)) / max(last_s - first_s, 1e-9)
