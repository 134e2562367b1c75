"""Configs side by side."""

from __future__ import annotations

from cluster.config.loading import validate_config
from cluster.reports.page.config_table import ABSENT, changed, default_values, differences
from cluster.reports.page.run_record import flatten


def test_only_what_differs_is_listed_with_what_only_one_has() -> None:
    found = differences([{"a": 1, "b": 2, "c": [1]}, {"a": 1, "b": 3, "d": None}])
    assert {d.key: d.values for d in found} == {"b": ("2", "3"), "c": ("[1]", ABSENT), "d": (ABSENT, "null")}


def test_a_run_of_defaults_differs_in_what_it_had_to_give() -> None:
    config = validate_config({"model": {"path": "m"}, "data": {"path": "d"}, "objective": {"beta": 0.2}}, "test")
    found = changed(default_values(), flatten(config.model_dump(mode="json")))
    assert {d.key: d.values[1] for d in found} == {"model.path": "m", "data.path": "d", "objective.beta": "0.2"}


def test_a_key_that_the_run_did_not_know_was_no_choice_of_it() -> None:
    assert changed({"new": 1, "a": 2}, {"a": 2}) == []
