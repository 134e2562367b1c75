"""The list of metrics has every figure of a run, once, and the documents are what it says."""

from __future__ import annotations

import re

import torch

from cluster.reports.metrics import BY_NAME, METRICS, as_markdown
from learner.config import ObjectiveConfig
from learner.loss.objectives import Scores, resolve_objective
from support.paths import REPOSITORY

OBJECTIVES = ("sft", "dpo", "orpo", "simpo", "cpo")


def test_names_are_there_once_and_prometheus_takes_them():
    assert len(BY_NAME) == len(METRICS) >= 40
    assert len({metric.prometheus_name for metric in METRICS}) == len(METRICS)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", metric.prometheus_name) for metric in METRICS)
    assert all(metric.help.endswith(".") for metric in METRICS)


def test_plots_hold_what_has_one_unit_and_one_kind():
    groups: dict[tuple[str, str], set[tuple[str, bool]]] = {}
    for metric in METRICS:
        groups.setdefault((metric.part, metric.panel), set()).add((metric.unit, metric.counted))
    assert {group: found for group, found in groups.items() if len(found) > 1} == {}


def test_what_objectives_report_is_in_the_list():
    for name in OBJECTIVES:
        scores = Scores(-torch.rand(2, 5), torch.ones(2, 5, dtype=torch.int32), -torch.rand(2, 5))
        _, metrics = resolve_objective(ObjectiveConfig(name=name)).fn(scores)
        assert metrics.keys() <= BY_NAME.keys()
        assert {f"eval/{metric}" for metric in metrics} <= BY_NAME.keys()


def test_the_document_is_what_the_list_says():
    assert (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8") == as_markdown()
