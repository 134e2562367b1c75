"""``sapo plan`` prints what a run needs and exits with 1 where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import Sapo


def test_a_plan_says_memory_disk_speed_and_length(sapo: Sapo, run_file: Path) -> None:
    said = sapo("plan", run_file, "learner.steps=50")
    assert said.status == 0, said
    for text in ("parameters", "1 of 1 rows used", "KV cache", "a checkpoint", "pairs/s", "50 steps", "not measured"):
        assert text in said.out


def test_a_plan_as_json_has_the_same_figures(sapo: Sapo, run_file: Path) -> None:
    said = sapo("plan", run_file, "--json", "--prompt-tokens", 10, "--response-tokens", 6, "--rows", 320)
    made = json.loads(said.out)
    assert made["workload"]["prompt"] == 10
    assert made["steps"] == 4 * 320 / 32
    assert set(made["stages"]) == {"2", "3"}


def test_a_run_that_does_not_fit_ends_with_status_1_and_what_would(sapo: Sapo, run_file: Path) -> None:
    said = sapo("plan", run_file, "learner.ranks=8", "--gpus", 4)
    assert said.status == 1
    assert "does not fit: more GPUs than there are" in said.out
    assert "better: learner.ranks=" in said.out


def test_data_that_are_not_there_are_assumed_and_it_says_so(sapo: Sapo, run_file: Path) -> None:
    said = sapo("plan", run_file, "data.path=/no/such.jsonl")
    assert said.status == 0
    assert "assumed from data.max_length" in said.out
    assert "steps: unknown" in said.out


def test_what_is_wrong_with_the_question_is_one_line(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    assert "must be h100 or h200 or a100" in sapo("plan", run_file, "--gpus", 8, "--device", "cpu").rejection
    assert "go together" in sapo("plan", run_file, "--rows", 5, "--prompt-tokens", 5).rejection
    assert "no such folder" in sapo("plan", run_file, f"model.path={tmp_path / 'gone'}").rejection
    assert "no such run folder" in sapo("plan", run_file, "--calibrate", tmp_path / "gone").rejection
