"""``sapo eval`` compares models in a table or as JSON."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cluster.config.sections import DataConfig
from cluster.evaluation.messages import Evaluation, EvaluationJob, Job, Share, as_json, read_job
from support.command_line import Sapo
from support.ifeval import CASES, write_responses, write_task


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


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: sapo[eval]")
@pytest.mark.slow
def test_ifevals_checker_says_the_same_as_a_reader_of_stored_responses(sapo: Sapo, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks")
    write_responses(tmp_path / "stored.json")
    arguments = ("eval", tmp_path / "stored.json", "--tasks", tmp_path / "tasks", "--json")
    said = sapo(*arguments)
    found = json.loads(said.out)[str(tmp_path / "stored.json")]
    assert len(CASES) == 20
    prompts = [all(case.followed) for case in CASES]
    single = [followed for case in CASES for followed in case.followed]
    share = sum(prompts) / 20
    strict = found["local_ifeval/prompt_level_strict_acc"]
    assert strict["mean"] == pytest.approx(share)
    assert strict["error"] == pytest.approx(math.sqrt(share * (1 - share) / 19))
    assert strict["samples"] == 20
    assert found["local_ifeval/inst_level_strict_acc"]["mean"] == pytest.approx(sum(single) / len(single))


def test_the_section_data_of_a_run_reaches_the_process_with_the_engine(
    sapo: Sapo, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def started(*_: object, input: str, **__: object) -> CompletedProcess[str]:
        jobs.append(read_job(input))
        return CompletedProcess((), 0, as_json(Evaluation(Share(0.5, 0.1), Share(0.25, 0.05), 1, 4)) + "\n", "")

    monkeypatch.setattr("subprocess.run", started)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "write"}\n')
    arguments = ("eval", tmp_path, "--prompts", prompts, "--check", "demo.task:check")
    assert sapo(*arguments).status == 0
    assert isinstance(jobs[-1], EvaluationJob)
    assert jobs[-1].data is None
    with_settings = run_file.read_text().replace("data:\n", "data:\n  chat_template_kwargs: {short: true}\n")
    run_file.write_text(with_settings)
    assert sapo(*arguments, "--config", run_file).status == 0
    assert isinstance(jobs[-1], EvaluationJob)
    assert jobs[-1].data is not None
    assert DataConfig.model_validate(jobs[-1].data).chat_template_kwargs == {"short": True}
