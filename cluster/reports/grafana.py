"""A Grafana dashboard of the list of metrics, as JSON that Grafana reads from a folder."""

from __future__ import annotations

import json
from typing import Any

from cluster.reports.metrics import METRICS, Metric

FILE = "sapo_grafana_dashboard.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
"""Of a plot, in units of Grafana's grid, which is 24 wide; plots beside each other."""
UNITS = {"s": "s", "share": "percentunit"}
"""Grafana's names of units; others are plain numbers."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
LEGEND = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
OPEN_PARTS = ("learner", "weights", "pairs", "actor")
"""Rows that are open at first."""


def dashboard() -> dict[str, Any]:
    """A row for each part of a run, a plot for each group of metrics."""
    panels: list[dict[str, Any]] = []
    y = 0
    for part in dict.fromkeys(metric.part for metric in METRICS):
        plots = _plots(part, y + 1)
        opened = part in OPEN_PARTS
        row = {
            "type": "row",
            "title": part.capitalize(),
            "collapsed": not opened,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            "panels": [] if opened else plots,
        }
        panels += [row, *(plots if opened else [])]
        y += 1 + (HEIGHT * -(-len(plots) // COLUMNS) if opened else 0)
    for number, panel in enumerate(_flat(panels), 1):
        panel["id"] = number
    return {
        "uid": "sapo",
        "title": "SAPO",
        "tags": ["sapo"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _run()]},
        "panels": panels,
    }


def as_json() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


def expression(metric: Metric) -> str:
    """PromQL of what a plot shows: the value, or of a total its rate per second."""
    series = f'{metric.prometheus_name}{{run=~"$run"}}'
    return f"rate({series}[$__rate_interval])" if metric.counted else series


def _plots(part: str, y: int) -> list[dict[str, Any]]:
    groups: dict[str, list[Metric]] = {}
    for metric in METRICS:
        if metric.part == part:
            groups.setdefault(metric.panel, []).append(metric)
    return [_plot(title, group, number, y) for number, (title, group) in enumerate(groups.items())]


def _plot(title: str, metrics: list[Metric], number: int, y: int) -> dict[str, Any]:
    first = metrics[0]
    unit = UNITS.get(first.unit, "short")
    return {
        "type": "timeseries",
        "title": f"{title} a second" if first.counted else title,
        "description": "\n\n".join(f"**{metric.name}**: {metric.help}" for metric in metrics),
        "datasource": DATASOURCE,
        "gridPos": {
            "x": number % COLUMNS * WIDTH,
            "y": y + number // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": "short" if first.counted else unit}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": LEGEND},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": expression(metric),
                "legendFormat": f"{{{{run}}}} {'{{part}}' if metric.part == 'actor' else metric.name}",
            }
            for i, metric in enumerate(metrics)
        ],
    }


def _flat(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [inner for panel in panels for inner in (panel, *panel.get("panels", ()))]


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}


def _run() -> dict[str, Any]:
    query = "label_values(ray_sapo_run_step, run)"
    return {
        "name": "run",
        "label": "run",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "runs"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
