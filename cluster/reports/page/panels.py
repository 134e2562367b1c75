"""Which curves stand together on a page, under which title and in which unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.reports.page.run_record import RunRecord, Series


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    log_scale: bool = False


PANELS = (
    Panel("Loss", "", ("loss", "nll_loss")),
    Panel("Rewards", "nats × β", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    Panel("Reward accuracy", "share of pairs", ("rewards/accuracies",)),
    Panel("Evaluations", "score", ("eval/greedy", "eval/sampled")),
    Panel(
        "Margins by region",
        "nats",
        ("logratios/segment_margin", "logratios/suffix_margin", "logps/segment_margin", "logps/suffix_margin"),
    ),
    Panel(
        "Log-probabilities by region",
        "nats",
        (
            "logps/prefix",
            "logps/chosen_segment",
            "logps/rejected_segment",
            "logps/chosen_suffix",
            "logps/rejected_suffix",
        ),
    ),
    Panel("Log-odds", "nats", ("log_odds_chosen", "log_odds_ratio")),
    Panel("Gradient norm", "", ("grad_norm",)),
    Panel("Learning rate", "", ("lr",)),
    Panel("Staleness", "optimizer steps", ("staleness/mean", "staleness/max")),
    Panel("Age of drawn pairs", "optimizer steps", ("age/steps_mean", "age/steps_max")),
    Panel(
        "Log-probability parity",
        "nats a token",
        ("weights/parity_mean_nats", "weights/parity_p99_nats", "weights/parity_max_nats"),
        log_scale=True,
    ),
    Panel("New segments", "share", ("pairs/edit_fraction", "pairs/identical_fraction", "pairs/eos_fraction")),
    Panel("Pairs trained", "pairs a second", ("throughput/pairs",)),
    Panel("Tokens", "tokens a second", ("throughput/trained", "throughput/generated")),
    Panel("Step time", "seconds", ("time/step_s",)),
    Panel("Learner idle", "share of step time", ("idle/for_pairs", "idle/for_weights", "idle/publishing")),
)
CUMULATIVE = ("tokens/generated", "buffer/blocked_lease_s", "buffer/blocked_draw_s")
SMOOTHED_STEPS = 10
"""Steps over which rates are taken: a single step's are mostly noise of the clock."""


def with_rates(run: RunRecord) -> dict[str, Series]:
    """The run's metrics, and those that follow from them: throughput and idle shares.

    A rate is a sum over the last ten steps by their time.
    """
    seconds = _recent(run.column("time/step_s"))
    derived = {
        "throughput/pairs": _recent(np.full(len(run.steps), float(run.batch_size))) / seconds,
        "throughput/trained": _recent(run.column("tokens/trained")) / seconds,
        "throughput/generated": _recent(np.diff(run.column("tokens/generated"), prepend=np.nan)) / seconds,
        "idle/for_pairs": _recent(run.column("time/draw_wait_s")) / seconds,
        "idle/for_weights": _recent(run.column("time/weights_wait_s")) / seconds,
        "idle/publishing": _recent(run.column("time/publish_s")) / seconds,
    }
    return run.columns | {name: values for name, values in derived.items() if np.isfinite(values).any()}


def chosen_panels(columns: set[str]) -> tuple[list[Panel], list[Panel]]:
    """The main panels that have something to show, and one for each metric that stands in none of them."""
    main = [
        Panel(panel.title, panel.unit, known, panel.log_scale)
        for panel in PANELS
        if (known := tuple(name for name in panel.metrics if name in columns))
    ]
    shown = {name for panel in PANELS for name in panel.metrics}
    return main, [Panel(name, _unit(name), (name,)) for name in sorted(columns - shown)]


def _unit(name: str) -> str:
    return "seconds" if name.endswith("_s") else "nats" if "nats" in name else ""


def _recent(values: Series) -> Series:
    """Sums over the last ten steps, the current one included; what a step lacks counts as nothing."""
    if not np.isfinite(values).any():
        return np.full(len(values), np.nan)
    sums = np.concatenate(([0.0], np.cumsum(np.nan_to_num(values))))
    first = np.maximum(np.arange(len(values)) + 1 - SMOOTHED_STEPS, 0)
    return sums[1:] - sums[first]
