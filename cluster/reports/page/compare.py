"""The page of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.reports.page.config_table import ABSENT, differences
from cluster.reports.page.figures import overlaid_figure
from cluster.reports.page.html import render
from cluster.reports.page.panels import chosen_panels, with_rates
from cluster.reports.page.report import TAIL, duration
from cluster.reports.page.run_record import RunRecord, Series, read_run
from contracts.errors import UserError

OWN_KEYS = ("name", "output_dir")
"""Differ between any two runs, and say nothing about them."""


@dataclass(frozen=True)
class Comparison:
    """One metric of all runs, as text: mean over the last steps, and over all."""

    metric: str
    last: tuple[str, ...]
    mean: tuple[str, ...]


def compare_page(folders: Sequence[Path]) -> str:
    """HTML of the runs in ``folders``: differences of their configs first.

    Raises:
        UserError: there are fewer than two, one is named twice, or a folder can't be used.
    """
    if len(folders) < 2:
        raise UserError(f"{folders[0] if folders else 'RUN'}: one run; `sapo compare` wants two or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{', '.join(map(str, folders))}: a run is named twice")
    runs = [read_run(folder) for folder in folders]
    labels = distinct_labels(runs)
    columns = [with_rates(run) for run in runs]
    known = set().union(*(of_run.keys() for of_run in columns))
    main, others = chosen_panels(known)
    drawn = [(label, run.steps, of_run) for label, run, of_run in zip(labels, runs, columns, strict=True)]
    single = [(name, panel.unit) for panel in main for name in panel.metrics]
    curves = [overlaid_figure(name, unit, f"curve-{i}", drawn) for i, (name, unit) in enumerate(single)]
    more = [overlaid_figure(panel.title, panel.unit, f"more-{i}", drawn) for i, panel in enumerate(others)]
    return render(
        "compare.html.jinja",
        [*curves, *more],
        title=" · ".join(labels),
        labels=labels,
        runs=runs,
        facts=[_facts(run) for run in runs],
        changes=[d for d in differences([run.flat_config for run in runs]) if d.key not in OWN_KEYS],
        versions=differences([run.environment.get("packages", {}) for run in runs]),
        comparisons=[comparison(name, columns) for panel in (*main, *others) for name in panel.metrics],
        curves=curves,
        more=more,
        tail=TAIL,
    )


def distinct_labels(runs: Sequence[RunRecord]) -> list[str]:
    """Names of the runs; where two have the same, as much of their paths as tells them apart."""
    names = [run.name for run in runs]
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(of_run[-depth:]) for of_run in parts]
    return names


def comparison(metric: str, columns: Sequence[dict[str, Series]]) -> Comparison:
    """One metric over all runs."""
    whole = [of_run.get(metric, np.zeros(0)) for of_run in columns]
    known = [values[np.isfinite(values)] for values in whole]
    return Comparison(
        metric,
        tuple(f"{values[-TAIL:].mean():.4g}" if len(values) else ABSENT for values in known),
        tuple(f"{values.mean():.4g}" if len(values) else ABSENT for values in known),
    )


def _facts(run: RunRecord) -> dict[str, str]:
    total_s = float(np.nan_to_num(run.column("time/step_s")).sum())
    pairs = len(run.steps) * run.batch_size
    return {
        "steps": str(run.steps[-1]),
        "time of all steps": duration(total_s) if total_s else ABSENT,
        "pairs a second": f"{pairs / total_s:.3g}" if total_s else ABSENT,
    }
