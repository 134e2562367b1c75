"""``sapo eval`` compares models in a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cluster.config.sections import DataConfig
from cluster.evaluation.messages import Evaluation, EvaluationJob, Share, as_json, read_job
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


def test_the_section_data_of_a_run_reaches_the_process_with_the_engine(
    sapo: Sapo, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[EvaluationJob] = []

    def started(*_: object, input: str, **__: object) -> CompletedProcess[str]:
        jobs.append(read_job(input))
        return CompletedProcess((), 0, as_json(Evaluation(Share(0.5, 0.1), Share(0.25, 0.05), 1, 4)) + "\n", "")

    monkeypatch.setattr("subprocess.run", started)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "write"}\n')
    arguments = ("eval", tmp_path, "--prompts", prompts, "--check", "demo.task:check")
    assert sapo(*arguments).status == 0
    assert jobs[-1].data is None
    with_settings = run_file.read_text().replace("data:\n", "data:\n  chat_template_kwargs: {short: true}\n")
    run_file.write_text(with_settings)
    assert sapo(*arguments, "--config", run_file).status == 0
    assert jobs[-1].data is not None
    assert DataConfig.model_validate(jobs[-1].data).chat_template_kwargs == {"short": True}
