"""Plain words when the metrics show a pattern that users of preference losses know as trouble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from math import copysign, inf, sqrt
from statistics import fmean, variance

WINDOW = 50
"""Steps over which a pattern must hold."""
CLEAR = 3.0
"""Standard errors by which the halves of the window must differ before a trend is believed."""


class Hints:
    """Watches metrics step by step; gives each hint once per run."""

    def __init__(self, log: Callable[[str], None], window: int = WINDOW) -> None:
        self._log = log
        self._recent: deque[Mapping[str, float]] = deque(maxlen=window)
        self._given: set[str] = set()

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take in one step's metrics."""
        self._recent.append(metrics)
        if len(self._recent) < (self._recent.maxlen or 0):
            return
        identical = self._values("pairs/identical_fraction")
        if identical and fmean(identical) > 0.5:
            self._hint(
                "identical",
                f"hint: {fmean(identical):.0%} of the segments equal the originals and are dropped; "
                "the EMA has nearly memorised the data, so little is learned per generated token",
            )
        if not self._values("rewards/margins"):
            return
        if self._trend("rewards/margins") > CLEAR:
            self._check_falling()
        accuracies = self._values("rewards/accuracies")
        if accuracies and fmean(accuracies) > 0.99:
            self._hint(
                "saturated",
                "hint: rewards/accuracies stays above 0.99: the margins are saturated, most pairs teach nothing more",
            )

    def _check_falling(self) -> None:
        """Both responses become less likely while the margin grows."""
        newest = self._recent[-1]
        if "logratios/segment_margin" in newest:
            # Rewards are relative to the reference: below 0 the good response is less likely than it was.
            names = ("rewards/chosen", "rewards/rejected")
            below = fmean(self._values(names[0])[-(len(self._recent) // 2) :] or [0.0]) < 0
            remedy = "a lower learning rate, a larger objective.beta or objective.sft_weight > 0 counters it"
        else:
            names, below = ("logps/chosen", "logps/rejected"), True
            if "log_odds_ratio" in newest:
                remedy = "a lower learning rate or a smaller objective.orpo_lambda counters it"
            elif "nll_loss" in newest:
                remedy = "a lower learning rate or more weight on the likelihood (objective.cpo_alpha, "
                remedy += "objective.sft_weight) counters it"
            else:
                remedy = "a lower learning rate or objective.sft_weight > 0 counters it"
        if below and all(self._trend(name) < -CLEAR for name in names):
            self._hint(
                "falling",
                f"hint: {names[0]} and {names[1]} both fall while the margin grows: the policy pushes both responses "
                f"down; {remedy}",
            )

    def _trend(self, name: str) -> float:
        """Mean of the window's second half less that of the first, in standard errors of the difference."""
        values = self._values(name)
        half = len(values) // 2
        first, second = values[:half], values[half:]
        if len(first) < 2:
            return 0.0
        difference = fmean(second) - fmean(first)
        error = sqrt(variance(first) / len(first) + variance(second) / len(second))
        return difference / error if error else copysign(inf, difference) if difference else 0.0

    def _values(self, name: str) -> list[float]:
        """The metric over the window; empty where a step lacks it."""
        values = [m[name] for m in self._recent if m.get(name) is not None]
        return values if len(values) == len(self._recent) else []

    def _hint(self, key: str, text: str) -> None:
        if key not in self._given:
            self._given.add(key)
            self._log(text)
