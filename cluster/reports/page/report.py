"""The page of one run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cluster.config.loading import load_config
from cluster.reports.duration import duration
from cluster.reports.page.config_table import changed, default_values
from cluster.reports.page.figures import panel_figure, time_figure, timeline_figure
from cluster.reports.page.html import render
from cluster.reports.page.panels import chosen_panels, with_rates
from cluster.reports.page.run_record import RunRecord, flatten, read_run
from cluster.reports.page.time_use import time_use
from cluster.reports.page.timeline import attempts

TAIL = 20
"""Steps whose mean stands for the end of the run."""


def report_page(folder: Path, recipe: Path | None = None) -> str:
    """HTML of the run in ``folder``.

    Args:
        recipe: the YAML file that the run's config is compared with; default: the defaults of all keys.

    Raises:
        UserError: the folder, one of its files or the recipe can't be used.
    """
    run = read_run(folder)
    columns = with_rates(run)
    main, others = chosen_panels(set(columns))
    curves = [panel_figure(panel, f"curve-{i}", run.steps, columns) for i, panel in enumerate(main)]
    more = [panel_figure(panel, f"more-{i}", run.steps, columns) for i, panel in enumerate(others)]
    parts = time_use(run)
    shares = [time_figure(run.steps, parts)] if parts else []
    stretches = attempts(run.events)
    timeline = [timeline_figure(stretches, run.events)] if stretches else []
    base = flatten(load_config(recipe).model_dump(mode="json")) if recipe else default_values()
    return render(
        "report.html.jinja",
        [*curves, *more, *shares, *timeline],
        title=f"{run.name} · run report",
        run=run,
        tiles=tiles(run, columns),
        curves=curves,
        more=more,
        shares=shares,
        parts=parts,
        timeline=timeline,
        events=[(clock(event.time), event) for event in run.events],
        samples=run.samples,
        filters=filters(run.samples),
        base=str(recipe) if recipe else "the defaults",
        changes=changed(base, run.flat_config),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )


FILTERS = {
    "step": "step",
    "age": "version",
    "margin": "margin",
    "edit": "edit_fraction",
    "logprob": "replacement_logprob",
}
"""Numbers by which sampled pairs can be filtered, and the key of samples.jsonl behind each."""
NO_WEIGHTS = ("version", -1)
"""Of a pair that no engine made."""


def filters(samples: list[dict[str, Any]]) -> list[str]:
    """Those that some pair has; version -1 is none."""
    known = {key for pair in samples for key, value in pair.items() if value is not None and (key, value) != NO_WEIGHTS}
    return [name for name, key in FILTERS.items() if key in known]


def tiles(run: RunRecord, columns: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, figure) of what one looks at first."""
    total_s = float(np.nan_to_num(run.column("time/step_s")).sum())
    wanted = run.flat_config.get("learner.steps")
    rows = [("steps", f"{run.steps[-1]}" + (f" of {wanted}" if wanted else ""))]
    if total_s:
        rows.append(("time of all steps", duration(total_s)))
        rows.append(("pairs trained", f"{len(run.steps) * run.batch_size:,}"))
        rows.append(("pairs a second", f"{len(run.steps) * run.batch_size / total_s:.3g}"))
    labels = {
        "loss": "loss",
        "rewards/margins": "reward margin",
        "rewards/accuracies": "reward accuracy",
        "pairs/identical_fraction": "identical segments",
        "weights/parity_max_nats": "parity, largest (nats)",
    }
    for name, label in labels.items():
        tail = columns.get(name, np.zeros(0))
        tail = tail[np.isfinite(tail)][-TAIL:]
        if len(tail):
            rows.append((label, f"{tail.mean():.4g}"))
    return rows


def clock(seconds: float) -> str:
    """UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
