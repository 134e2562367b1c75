"""``sapo eval`` compares models in a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.evaluation.messages import Evaluation, Share
from support.command_line import Sapo


def test_an_evaluation_that_cannot_start_is_one_line(sapo: Sapo, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": []}\n')

    def said(model: Path, prompts: Path = prompts, check: str = "demo.task:check") -> str:
        return sapo("eval", model, "--prompts", prompts, "--check", check).rejection

    assert said(tmp_path / "none") == f"model {tmp_path / 'none'}: no such folder"
    assert said(tmp_path) == f"--prompts {prompts}:1: no message before the response"
    assert said(tmp_path, tmp_path / "none.jsonl").endswith("can't be read: No such file or directory")
    assert said(tmp_path, check="demo.task:none").startswith("--check demo.task:none: ")


def test_evaluations_are_printed_as_a_table_or_json(
    sapo: Sapo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Evaluation(Share(0.5, 0.1), Share(0.25, 0.05), 10, 4)
    monkeypatch.setattr("cluster.evaluation.evaluate.evaluate", lambda *_, **__: result)
    arguments = ("eval", "one", "two", "--prompts", tmp_path / "p.jsonl", "--check", "m:f")
    found = json.loads(sapo(*arguments, "--json").out)
    assert list(found) == ["one", "two"]
    assert found["two"]["sampled"] == {"mean": 0.25, "error": 0.05}
    assert "0.250 ± 0.050" in sapo(*arguments).out


def test_what_an_evaluation_is_to_do_is_said_once(sapo: Sapo, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        return sapo("eval", tmp_path, *arguments).rejection

    prompts = ("--prompts", tmp_path / "p.jsonl")
    assert said().startswith("one of --check, --write, --tasks")
    assert said(*prompts, "--check", "m:f", "--write", "mt-bench").endswith("--check and --write is given")
    assert said("--check", "m:f") == "--check needs --prompts FILE"
    assert said(*prompts, "--write", "mt-bench") == "--write needs --out FILE"
    assert said(*prompts, "--check", "m:f", "--out", "x") == "--out goes with --write, not with --check"
    assert said(*prompts, "--write", "mt-bench", "--samples", "2") == "--samples goes with --check, not with --write"
    assert said("two", *prompts, "--write", "mt-bench", "--out", "x") == "--write takes one model, 2 are given"
