"""Holds generation and training to a ratio: who may start work and who may draw, as two inequalities."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LimiterState:
    """What a limiter with other settings needs to go on."""

    steps: int
    published: int
    accounted: int
    base: int
    """Plan indices below this were meant for the completed steps."""


@dataclass
class RateLimiter:
    """With r plan indices per draw, ``steps`` completed optimizer steps, the newest weights ``published`` at step p,
    and ``accounted`` indices whose outcome is known:

        index i may be leased   when  i < warmup_offset + (p + 1 + ahead) r + deficit
        draw d may happen       when  accounted >= warmup_offset + (d + 1 - behind) r + deficit   and   size >= needed

    In words: work meant for step d is begun with weights at most ``ahead`` steps old, d <= p + ahead, and draw d waits
    for the work of step d - behind. Both 0 is lockstep. Admission is held back at the lease, so finished work is never
    thrown away. Neither side waits forever as long as publications are at most ahead + behind + 1 steps apart and the
    learner advances after each draw: ``deficit`` grows by r whenever the learner needs a batch, all admitted indices
    are accounted for, and the buffer still holds too few pairs (pairs that equal their original are dropped).
    """

    inserts_per_step: int
    """r"""
    needed: int
    """Pairs in the buffer before a draw."""
    ahead: int
    behind: int
    warmup_offset: int = 0
    """Indices of the first step beyond r."""
    steps: int = 0
    """Completed optimizer steps; staleness is measured from here."""
    published: int = 0
    """Optimizer step of the newest weights that all actors generate with."""
    draws: int = 0
    accounted: int = 0
    deficit: int = 0
    """Indices admitted in place of those that gave no pair."""

    def admitted(self) -> int:
        """Indices below this may be leased."""
        return self.warmup_offset + (self.published + 1 + self.ahead) * self.inserts_per_step + self.deficit

    def may_draw(self, size: int) -> bool:
        due = self.warmup_offset + (self.draws + 1 - self.behind) * self.inserts_per_step + self.deficit
        return self.accounted >= due and size >= self.needed

    def credit(self, size: int) -> None:
        """Admit more when the learner needs a batch that nothing admitted can still fill."""
        # A learner that holds a batch lacks nothing yet: it first publishes weights that the next work should use.
        while self.draws <= self.steps and self.accounted >= self.admitted() and size < self.needed:
            self.deficit += self.inserts_per_step

    def drew(self) -> None:
        """A batch was drawn."""
        self.draws += 1

    def account(self) -> None:
        """The outcome of one more index is known."""
        self.accounted += 1

    def advance(self, steps: int, published: int) -> None:
        """``steps`` optimizer steps are done, and all actors generate with weights of step ``published`` or newer."""
        self.steps, self.published = steps, published

    def state(self) -> LimiterState:
        base = self.warmup_offset + self.steps * self.inserts_per_step + self.deficit
        return LimiterState(self.steps, self.published, self.accounted, base)

    def resume(self, saved: LimiterState) -> None:
        """Go on from ``saved`` with this limiter's own settings, which may differ; a drawn batch that was never trained
        on counts as not drawn."""
        self.steps, self.published, self.draws = saved.steps, saved.published, saved.steps
        self.accounted = saved.accounted
        self.deficit = saved.base - self.warmup_offset - self.steps * self.inserts_per_step


def warmup_offset(needed: int, inserts_per_step: int) -> int:
    """Plan indices that have to be there before the first draw beyond the first step's own: whole steps' worth."""
    return max(0, -(-(needed - inserts_per_step) // inserts_per_step)) * inserts_per_step
