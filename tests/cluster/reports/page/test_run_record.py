"""A run folder is read as it is, and what is wrong with one is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.reports.page.run_record import read_run
from contracts.errors import UserError
from support.run_folders import make_run


def test_metrics_are_columns_with_nan_where_a_step_has_none(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r", steps=5))
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(run.columns["loss"], 1 / np.arange(1, 6))
    assert np.isnan(run.columns["pairs/identical_fraction"]).tolist() == [True, *[False] * 4]
    assert np.isnan(run.column("no/such")).all()


def test_scores_stand_at_the_steps_of_their_checkpoints(tmp_path: Path) -> None:
    """Also those that came in after the last step, which metrics.jsonl can't have."""
    folder = make_run(tmp_path / "r", steps=5)
    lines = [{"step": step, "greedy": {"mean": step / 10, "error": 0.1}} for step in (2, 5)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    column = read_run(folder).columns["eval/greedy"]
    np.testing.assert_array_equal(column, [np.nan, 0.2, np.nan, np.nan, 0.5])


def test_the_log_is_what_an_operator_would_read(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r"))
    assert [(line.level, line.text) for line in run.log] == [
        ("INFO", "rows.jsonl: 20 of 21 rows used"),
        ("WARNING", "actor-0 died"),
    ]


def test_a_run_of_an_earlier_version_is_read_without_what_it_did_not_write(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    for name in ("events.jsonl", "samples.jsonl", "run.log"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.events, run.samples, run.log, run.environment) == ([], [], [], {})


def test_a_line_that_is_being_written_is_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", steps=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert read_run(folder).steps.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.jsonl", "", "metrics.jsonl: is empty"),
        ("metrics.jsonl", '{"step": 1}\n{"loss": 2}\n', "metrics.jsonl:2: damaged"),
        ("metrics.jsonl", '{"step": 1, "loss": "high"}\n', "metrics.jsonl: damaged: a metric is no number"),
        ("events.jsonl", "[]\n", "events.jsonl:1: damaged"),
        ("events.jsonl", '{"time": "noon", "event": "a", "message": "b"}\n', "events.jsonl: damaged: time 'noon'"),
        ("samples.jsonl", "{\n", "samples.jsonl:1: damaged"),
        ("config.yaml", "- a list\n", "config.yaml: damaged"),
        ("environment.json", "{", "environment.json: damaged"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = make_run(tmp_path / "r")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        read_run(folder)


def test_what_is_no_run_folder_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        read_run(tmp_path / "gone")
    with pytest.raises(UserError, match="is missing"):
        read_run(tmp_path)
