"""Where the time of a run's steps went, from the ``time/*`` metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.reports.page.run_record import RunRecord, Series

PARTS = (
    ("time/draw_wait_s", "waiting for pairs"),
    ("time/weights_wait_s", "waiting for weights to arrive"),
    ("time/reference_s", "reference scores"),
    ("time/forward_backward_s", "forward and backward"),
    ("time/optimizer_s", "optimizer"),
    ("time/ema_s", "EMA"),
    ("time/publish_s", "gathering weights to publish"),
)
IN_RANKS = ("time/reference_s", "time/forward_backward_s", "time/optimizer_s", "time/ema_s")
AROUND_RANKS = "ranks waiting for each other, sending batches"
REST = "everything else"


@dataclass(frozen=True)
class TimeUse:
    """Seconds of one kind."""

    label: str
    seconds: Series
    """float64 [steps]"""
    total_s: float
    share: float
    """Of the time of all steps."""


def time_use(run: RunRecord) -> list[TimeUse]:
    """All of ``time/step_s`` divided up; the parts add up to it. Empty where the run has no step times."""
    whole = np.nan_to_num(run.column("time/step_s"))
    if not whole.sum():
        return []
    parts = {label: np.nan_to_num(run.column(name)) for name, label in PARTS}
    in_ranks = sum((np.nan_to_num(run.column(name)) for name in IN_RANKS), np.zeros(len(whole)))
    parts[AROUND_RANKS] = np.maximum(0.0, np.nan_to_num(run.column("time/train_s")) - in_ranks)
    parts[REST] = np.maximum(0.0, whole - sum(parts.values(), np.zeros(len(whole))))
    return [
        TimeUse(label, seconds, float(seconds.sum()), float(seconds.sum() / whole.sum()))
        for label, seconds in parts.items()
        if seconds.sum() > 0
    ]
