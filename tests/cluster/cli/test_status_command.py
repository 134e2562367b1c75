"""``sapo status`` of runs that have ended, and where there is none; of one that goes on in tests/cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.command_line import Sapo
from support.run_folders import make_run


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_run_that_has_ended_is_shown_from_its_folder(sapo: Sapo):
    make_run(Path("runs/mine"))
    for run in ("mine", "runs/mine"):
        said = sapo("status", "--run", run)
        assert said.status == 0, said.err
        assert "mine  sapo  step 30" in said.out and "complete at" in said.out and "chosen    1 ⟦2 9⟧" in said.out
    assert json.loads(sapo("status", "--run", "mine", "--json").out)["step"] == 30


def test_where_there_is_none_one_line_says_so(sapo: Sapo):
    assert sapo("status").rejection.startswith("no run is going on in ")
    assert sapo("status", "--run", "mine").rejection.startswith("run mine: no run folder runs/mine here")
    Path("runs/empty").mkdir(parents=True)
    assert "no step of the run is done" in sapo("status", "--run", "empty").rejection


def test_a_phase_that_is_none_is_one_line(sapo: Sapo, run_file: Path):
    assert sapo("debug", run_file, "--break", "plan").rejection == (
        "--break plan: no such phase; one of write, draw, step, publish"
    )


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_starts(
    sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch
):
    from cluster.reports import services

    monkeypatch.setattr(services, "find_spec", lambda name: None)
    rejection = sapo("train", run_file, "logging.trackers=[wandb]", "--dry-run").rejection
    assert rejection.startswith("logging.trackers wandb: its Python package is not installed: pip install wandb")
