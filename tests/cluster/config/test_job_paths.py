"""Nothing that a Ray job writes goes into the copy of the working directory that Ray deletes."""

from __future__ import annotations

import pytest

from cluster.config.job_paths import anchored, checkout
from cluster.config.run_config import validate_config
from contracts.errors import UserError


def config(**values):
    return validate_config({"model": {"path": "models/m"}, "data": {"path": "data/d.jsonl"}} | values, "test")


def test_outside_of_a_job_nothing_changes(tmp_path):
    assert anchored(config(), tmp_path, tmp_path) == config()


def test_a_job_writes_under_the_checkout_and_finds_what_was_uploaded(tmp_path):
    copy, home = tmp_path / "working_dir_files" / "pkg", tmp_path / "home"
    (copy / "data").mkdir(parents=True)
    (copy / "data" / "d.jsonl").touch()
    (home / "models" / "m").mkdir(parents=True)
    found = anchored(config(output_dir="runs"), copy, home)
    assert found.output_dir == str(home / "runs")
    assert found.data.path == str(copy / "data" / "d.jsonl")
    assert found.model.path == str(home / "models" / "m")


def test_a_hub_name_stays_a_hub_name(tmp_path):
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    assert anchored(config(output_dir="/abs"), copy, tmp_path).model.path == "models/m"
    assert anchored(config(output_dir="/abs"), copy, None).output_dir == "/abs"


def test_a_relative_output_without_a_checkout_is_refused(tmp_path):
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    with pytest.raises(UserError, match=r"output_dir runs: .*make it absolute"):
        anchored(config(output_dir="runs"), copy, None)


def test_this_checkout_is_known():
    found = checkout()
    assert found is None or (found / "cluster" / "job.py").exists()
