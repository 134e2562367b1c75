"""The figures of a run on Ray's metrics port, each with the labels ``run`` and ``part``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

from cluster.reports.metrics import BY_NAME, METRICS

TAGS = ("run", "part")


class RayMetrics:
    """Of one driver. A figure that is not in the list of metrics is left out; one that is not finite too."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[tuple[str, str], float] = {}
        """Newest values, by name and part."""
        self._totals = {metric.name: 0.0 for metric in METRICS if metric.kind == "added"}
        # What has not happened yet is 0: Prometheus sees no increase from nothing to 1. Ray's counters can't say 0.
        self.set(dict(self._totals))

    def set(self, figures: Mapping[str, float | None], part: str | None = None) -> None:
        """Export the newest values.

        Args:
            part: an actor's name; default: what the list says.
        """
        for name, value in figures.items():
            metric = BY_NAME.get(name)
            if metric is None or value is None or not math.isfinite(value):
                continue
            shown = value
            if metric.kind == "added":
                shown = self._totals[name] = self._totals[name] + value
            if name not in self._gauges:
                self._gauges[name] = Gauge(metric.ray_name, description=metric.help, tag_keys=TAGS)
            self._shown[name, part or metric.part] = shown
            self._gauges[name].set(shown, tags={"run": self._run, "part": part or metric.part})

    def refresh(self) -> None:
        """Say everything once more: Ray forgets what has been scraped, and a series that is not said again ends."""
        for (name, part), shown in list(self._shown.items()):
            self._gauges[name].set(shown, tags={"run": self._run, "part": part})

    def forget(self, part: str) -> None:
        """An actor is gone: its series end."""
        for key in [key for key in self._shown if key[1] == part]:
            del self._shown[key]


class EventCounts(logging.Handler):
    """Counts the run's events."""

    def __init__(self, metrics: RayMetrics) -> None:
        super().__init__(logging.DEBUG)
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        counted = {f"events/{str(getattr(record, 'event', '')).replace(' ', '_')}": 1.0}
        if record.levelno >= logging.WARNING:
            counted["events/warnings"] = 1.0
        self._metrics.set(counted)
