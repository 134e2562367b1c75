"""Says in words who waited for whom in a run, and what would balance it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil


@dataclass(frozen=True)
class Shares:
    """Where the time of a stretch of the run went, in seconds."""

    wall_s: float
    learner_busy_s: float
    """Forward, backward, optimizer, EMA."""
    draw_wait_s: float = 0.0
    """The learner waited for pairs."""
    weights_wait_s: float = 0.0
    """The learner waited for actors to acknowledge weights (the staleness bound)."""
    publish_s: float = 0.0
    """The learner stood still while the EMA was gathered."""
    actor_wait_s: float = 0.0
    """Actors waited for the limiter, averaged over the actors."""
    actors: int = 0

    def __sub__(self, earlier: Shares) -> Shares:
        """What came after ``earlier``, of the same run."""
        seconds = {f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self) if f.name != "actors"}
        # The average over the actors falls when one joins that has not waited yet.
        return Shares(actors=self.actors, **{name: max(0.0, value) for name, value in seconds.items()})

    @property
    def learner_idle(self) -> float:
        """Share of the wall time in which the learner waited."""
        return (self.draw_wait_s + self.weights_wait_s) / self.wall_s if self.wall_s else 0.0

    @property
    def actor_idle(self) -> float:
        """Share of the wall time in which the average actor was held back."""
        return min(1.0, self.actor_wait_s / self.wall_s) if self.wall_s else 0.0


@dataclass(frozen=True)
class Machine:
    """What there is left for more of either side."""

    room: int = 1
    """Generation actors that the cluster could still place."""
    cores: int = 0
    """Of the one machine on whose cores everything computes; 0 on GPUs or several machines."""
    busy: float = 0.0
    """Share of their time in which these cores computed, whoever for."""

    @property
    def saturated(self) -> bool:
        """More processes would only share the cores."""
        return self.cores > 0 and self.busy >= SATURATED


SATURATED = 0.9


def bottleneck(shares: Shares, machine: Machine, *, lockstep: bool) -> str:
    """One sentence with the numbers and what would help on this machine."""
    if shares.actors == 0:
        return f"learner busy {shares.learner_busy_s / max(shares.wall_s, 1e-9):.0%} of the time"
    numbers = f"learner idle {shares.learner_idle:.0%}, actors idle {shares.actor_idle:.0%}"
    busy = f"all {machine.cores} cores of the machine are busy ({machine.busy:.0%})" if machine.saturated else ""
    diagnosis = _of_lockstep(busy) if lockstep else _of_the_learner(shares) or _of_the_actors(shares, machine, busy)
    return f"{numbers}: {diagnosis}"


def _of_lockstep(busy: str) -> str:
    both = "lockstep, each side waits for the other"
    if busy:
        return f"{both}, and {busy}: to overlap them would gain little"
    return f"{both}; weights.max_staleness 1 or more would overlap them"


def _of_the_learner(shares: Shares) -> str:
    """Where it waits for weights rather than for pairs; else empty."""
    if shares.publish_s > 0.1 * shares.wall_s:
        share = shares.publish_s / shares.wall_s
        return f"publication-bound, {share:.0%} of the time goes into gathering; raise weights.publish_every"
    if shares.weights_wait_s > max(0.05 * shares.wall_s, shares.draw_wait_s):
        return "the learner waits for weights to arrive; raise weights.max_staleness"
    return ""


def _of_the_actors(shares: Shares, machine: Machine, busy: str) -> str:
    """``busy``: that the cores are, where they are."""
    if shares.learner_idle > 0.05:
        # The learner's busy share says how much faster generation would have to be.
        more = max(1, ceil(shares.actors * (1.0 / max(1e-3, 1.0 - shares.learner_idle) - 1.0)))
        balance = f"{more} more actor(s) would balance"
        if busy:
            return f"generation-bound, and {busy}: more actors would only share them; more cores would help"
        if machine.room < more:
            has = f"has room for {machine.room}" if machine.room else "has no room for one"
            return f"generation-bound; {balance}, and the cluster {has}"
        return f"generation-bound; {balance}"
    if shares.actor_idle > 0.5 and shares.actors > 1:
        fewer = max(1, int(shares.actors * shares.actor_idle))
        return f"training-bound; {fewer} of {shares.actors} actors could go{'' if busy else ', or more learner ranks'}"
    return ("training-bound" if shares.actor_idle > 0.1 else "balanced") + (f"; {busy}" if busy else "")
