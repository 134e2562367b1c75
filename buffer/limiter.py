"""Holds generation and training to a ratio: who may start work and who may draw, as one inequality."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RateLimiter:
    """With r plan indices per draw, ``steps`` completed optimizer steps and ``accounted`` indices whose fate is known:

        index i may be leased   when  i < warm + (steps + 1 + ahead) r + starved
        draw d may happen       when  accounted >= warm + (d + 1 - behind) r   and   size >= needed

    ``ahead`` and ``behind`` are the slack in steps; both 0 is lockstep. Admission is held back at the lease, so
    finished work is never thrown away. ``starved`` grows by r whenever all admitted indices are accounted for and
    the buffer still holds too few pairs (pairs that equal their original are dropped), so neither side can wait forever.
    """

    inserts_per_step: int
    needed: int
    """Pairs in the buffer before a draw."""
    ahead: int
    behind: int
    warm: int = 0
    steps: int = 0
    draws: int = 0
    accounted: int = 0
    starved: int = 0

    def admitted(self) -> int:
        """Indices below this may be leased."""
        return self.warm + (self.steps + 1 + self.ahead) * self.inserts_per_step + self.starved

    def may_draw(self, size: int) -> bool:
        enough = self.accounted >= self.warm + (self.draws + 1 - self.behind) * self.inserts_per_step
        return enough and size >= self.needed

    def feed(self, size: int) -> None:
        """Admit more when everything admitted is accounted for and the buffer is too small to draw from."""
        while self.accounted >= self.admitted() and size < self.needed:
            self.starved += self.inserts_per_step
