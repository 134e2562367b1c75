"""How long something that has always come may fail to come before it is given up."""

from __future__ import annotations

FIRST = 6.0
"""The first time is given so many times the floor: kernels are compiled, caches filled."""
FACTOR = 10.0
"""How many times the longest seen is too long."""


class Patience:
    """A deadline that follows what was measured."""

    def __init__(self, floor_s: float) -> None:
        """``floor_s``: nothing is given up sooner, in seconds."""
        self._floor_s = floor_s
        self._longest_s: float | None = None

    def observe(self, seconds: float) -> None:
        """It came after so many seconds."""
        self._longest_s = max(self._longest_s or 0.0, seconds)

    @property
    def limit_s(self) -> float:
        """Longest wait from now on, in seconds."""
        if self._longest_s is None:
            return FIRST * self._floor_s
        return max(self._floor_s, FACTOR * self._longest_s)
