"""Plain words when the metrics show a pattern that users of preference losses know as trouble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

WINDOW = 50
"""Steps over which a pattern must hold."""


class Hints:
    """Watches metrics step by step; says each hint once per run."""

    def __init__(self, say: Callable[[str], None], window: int = WINDOW) -> None:
        self._say = say
        self._recent: deque[Mapping[str, float]] = deque(maxlen=window)
        self._said: set[str] = set()

    def see(self, metrics: Mapping[str, float]) -> None:
        """Take in one step's metrics."""
        self._recent.append(metrics)
        if len(self._recent) < (self._recent.maxlen or 0):
            return
        identical = self._mean("pairs/identical_fraction")
        if identical > 0.5:
            self._hint(
                "identical",
                f"hint: {identical:.0%} of the segments equal the originals and are dropped; "
                "the average has nearly memorised the data, so little is learned per generated token",
            )
        if not self._has("rewards/margins"):
            return
        half = len(self._recent) // 2
        rise = {
            side: self._mean(f"rewards/{side}", half) - self._mean(f"rewards/{side}", 0, half)
            for side in ("chosen", "rejected", "margins")
        }
        falling = rise["chosen"] < 0 and rise["rejected"] < 0 and self._mean("rewards/chosen", half) < 0
        if falling and rise["margins"] > 0:
            self._hint(
                "falling",
                "hint: rewards/chosen and rewards/rejected both fall while the margin grows: the policy pushes both "
                "responses down; a lower learning rate, a larger beta or objective.sft_weight > 0 counters it",
            )
        if self._mean("rewards/accuracies") > 0.99:
            self._hint(
                "saturated",
                "hint: rewards/accuracies stays above 0.99: the margins are saturated, most pairs teach nothing more",
            )

    def _has(self, name: str) -> bool:
        return all(m.get(name) is not None for m in self._recent)

    def _mean(self, name: str, first: int = 0, last: int | None = None) -> float:
        values = [m[name] for m in list(self._recent)[first:last] if m.get(name) is not None]
        return sum(values) / len(values) if values else 0.0

    def _hint(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._say(text)
