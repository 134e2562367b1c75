"""Figures as plotly.js draws them, plain JSON: curves, stacked step time, timeline.

Colours of text and grid are the page's own (page.js sets them, for light and dark), so that no figure names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.reports.page.panels import Panel
from cluster.reports.page.run_record import Event, Series
from cluster.reports.page.series import curve
from cluster.reports.page.time_use import TimeUse
from cluster.reports.page.timeline import Attempt

Trace = dict[str, Any]
COLOURS = ("#3b7dd8", "#e07b39", "#2a9d6f", "#b05cc8", "#c9a227", "#d1495b", "#5a8f9c", "#8a6d4f", "#8c93a3")
"""Told apart on white and on dark grey."""
SYMBOLS = {
    "checkpoint": "diamond",
    "checkpoint failed": "x",
    "checkpoint damaged": "x",
    "actor replaced": "triangle-up",
    "resized": "star",
    "step skipped": "circle",
}
"""Events between the beginning and the end of an attempt, each with its marker."""
DIGITS = 6
"""Significant ones of a drawn value."""


@dataclass(frozen=True)
class Figure:
    """One plot of the page."""

    id: str
    """Of its element."""
    title: str
    unit: str
    """Of the vertical axis."""
    data: list[Trace]
    layout: dict[str, Any]

    @property
    def drawn(self) -> dict[str, Any]:
        """What page.js is handed."""
        return {"id": self.id, "data": self.data, "layout": self.layout}


def panel_figure(panel: Panel, ident: str, steps: NDArray[np.int64], columns: Mapping[str, Series]) -> Figure:
    """One run: a curve for each metric of the panel, faint as it was and strong as it is smoothed."""
    data: list[Trace] = []
    for metric, colour in zip(panel.metrics, COLOURS, strict=False):
        data += _faint_and_strong(metric, colour, steps, columns[metric])
    return Figure(ident, panel.title, panel.unit, data, _axes(panel.log_scale, legend=len(panel.metrics) > 1))


def overlaid_figure(
    metric: str, unit: str, ident: str, runs: Sequence[tuple[str, NDArray[np.int64], Mapping[str, Series]]]
) -> Figure:
    """One metric of several runs, which are (label, steps, metrics); a run that lacks it keeps its colour."""
    data: list[Trace] = []
    for (label, steps, columns), colour in zip(runs, _colours(len(runs)), strict=True):
        if metric in columns:
            data += _faint_and_strong(label, colour, steps, columns[metric])
    return Figure(ident, metric, unit, data, _axes(metric.startswith("weights/parity"), legend=True))


def time_figure(steps: NDArray[np.int64], parts: Sequence[TimeUse]) -> Figure:
    """Shares of the step time over the run, stacked to 100 %."""
    data: list[Trace] = []
    for part, colour in zip(parts, _colours(len(parts)), strict=True):
        drawn = curve(steps, part.seconds, points=200)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": part.label,
                "x": rounded(drawn.x),
                "y": rounded(drawn.smooth),
                "stackgroup": "time",
                "groupnorm": "percent",
                "line": {"width": 0, "color": colour},
                "hovertemplate": "%{y:.1f} %",
            }
        )
    layout = _axes(log_scale=False, legend=True)
    layout["yaxis"] |= {"range": [0, 100], "ticksuffix": " %"}
    layout["hovermode"] = "x unified"
    return Figure("time-shares", "Where the time of a step went", "share", data, layout)


def timeline_figure(stretches: Sequence[Attempt], events: Sequence[Event]) -> Figure:
    """Attempts as bars over the time of day (UTC), above them the phases of each start and what happened as markers."""
    data: list[Trace] = []
    for stretch, colour in zip(stretches, _colours(len(stretches)), strict=True):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": stretch.label,
                "x": [_moment(stretch.start), _moment(stretch.end)],
                "y": [stretch.label, stretch.label],
                "line": {"width": 14, "color": colour},
                "hovertemplate": f"{stretch.label}: {stretch.outcome}<br>%{{x}}<extra></extra>",
                "showlegend": False,
            }
        )
    phases = [event for event in events if event.kind == "phase" and float(event.details.get("seconds", 0)) > 0]
    for event, colour in zip(phases, _colours(len(phases)), strict=True):
        seconds = float(event.details["seconds"])
        what = _plain(str(event.details.get("phase", "")))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": what,
                "x": [_moment(event.time - seconds), _moment(event.time)],
                "y": ["start", "start"],
                "line": {"width": 14, "color": colour},
                "hovertemplate": f"{what}: {seconds:.1f} s<extra></extra>",
                "showlegend": False,
            }
        )
    for (kind, symbol), colour in zip(SYMBOLS.items(), COLOURS, strict=False):
        moments = [event for event in events if event.kind == kind]
        if moments:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [_moment(event.time) for event in moments],
                    "y": ["events"] * len(moments),
                    "text": [_plain(event.message) for event in moments],
                    "marker": {"symbol": symbol, "size": 11, "color": colour},
                    "hovertemplate": "%{text}<br>%{x}<extra></extra>",
                }
            )
    layout = _axes(log_scale=False, legend=True)
    layout["xaxis"] = {"type": "date", "nticks": 6, "automargin": True}
    layout["yaxis"] = {"type": "category", "automargin": True}
    layout["hovermode"] = "closest"
    layout["height"] = 130 + 34 * (len(stretches) + 1 + bool(phases))
    return Figure("timeline", "Attempts, checkpoints, replaced actors", "", data, layout)


def rounded(values: NDArray[np.float64]) -> list[float]:
    """As numbers of a few digits, which keep the page small."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _faint_and_strong(name: str, colour: str, steps: NDArray[np.int64], values: NDArray[np.float64]) -> list[Trace]:
    drawn = curve(steps, values)
    x = rounded(drawn.x)
    base = {"type": "scatter", "mode": "lines", "x": x, "legendgroup": name, "name": name}
    strong = base | {"y": rounded(drawn.smooth), "line": {"color": colour, "width": 2}}
    if len(x) <= 12:  # so few points, as of the parity check, are seen as points, and are not smoothed
        return [strong | {"mode": "lines+markers", "y": rounded(drawn.y)}]
    faint = base | {
        "y": rounded(drawn.y),
        "line": {"color": colour, "width": 1},
        "opacity": 0.25,
        "showlegend": False,
        "hoverinfo": "skip",
    }
    return [faint, strong]


def _axes(log_scale: bool, legend: bool) -> dict[str, Any]:
    return {
        "xaxis": {},
        "yaxis": {"automargin": True} | ({"type": "log", "tickformat": ".1e", "nticks": 5} if log_scale else {}),
        "showlegend": legend,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "hovermode": "x",
        "margin": {"l": 44, "r": 12, "t": 12, "b": 28},
    }


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _plain(text: str) -> str:
    """Plotly reads a few tags in texts; these are none."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
