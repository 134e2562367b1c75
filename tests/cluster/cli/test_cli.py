"""The command line: what it prints, and that what a user can mend is one line on stderr and a status that is not 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cluster.cli.app import fields, main
from cluster.config.run_config import RunConfig, load_config
from contracts.errors import UserError
from demo.model import write_model
from support.paths import REPOSITORY


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a refusal, without the program's name."""
        assert self.status == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("sapo: ")
        return lines[0].removeprefix("sapo: ")


Sapo = Callable[..., Said]


@pytest.fixture
def sapo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sapo:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["sapo", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run that could start: data, tokenizer and an output folder are there."""
    write_model(tmp_path / "model")
    turns = [{"role": "user", "content": "write 3 numbers"}, {"role": "assistant", "content": "1 2 9"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    values = {
        "name": "r",
        "output_dir": str(tmp_path / "runs"),
        "model": {"path": str(tmp_path / "model")},
        "data": {"path": str(tmp_path / "rows.jsonl")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, bool, bool]]:
    """What the run loop was asked for, instead of a run."""
    calls: list[tuple[RunConfig, bool, bool]] = []

    def train(config: RunConfig, *, resume: bool, overwrite: bool) -> SimpleNamespace:
        calls.append((config, resume, overwrite))
        return SimpleNamespace(policy="P", ema="E", folder=Path("F"))

    monkeypatch.setattr("cluster.run.loop.train", train)
    return calls


def test_without_arguments_the_first_commands_are_shown(sapo: Sapo) -> None:
    for arguments in ((), ("--help",)):
        said = sapo(*arguments)
        shown = said.out + said.err
        for words in ("train", "sft", "eval", "generate", "actors", "config", "python -m demo data"):
            assert words in shown


def test_config_prints_what_a_run_would_use_as_yaml_that_reads_back(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    said = sapo("config", run_file, "learner.steps=5")
    (tmp_path / "again.yaml").write_text(said.out)
    assert said.status == 0
    assert load_config(tmp_path / "again.yaml") == load_config(run_file, ["learner.steps=5"])


def test_every_field_is_explained_with_its_default(sapo: Sapo) -> None:
    explained = {name: (default, meaning) for name, default, meaning in fields(RunConfig)}
    assert explained["model.path"][0] == "required"
    assert explained["ema.decay"][0] == "0.5"
    assert explained["generation.segment_length"][0] == "256"
    assert explained["model.lora.rank"][0] == "16"
    assert all(meaning for _, meaning in explained.values())
    assert not {name for name in explained if name.rpartition(".")[0] in explained}, "a section is listed as a field"
    assert "weights.max_staleness" in sapo("config", "--explain").out


def test_train_hands_config_and_flags_on_and_prints_where_the_models_are(
    sapo: Sapo, run_file: Path, started: list[tuple[RunConfig, bool, bool]]
) -> None:
    said = sapo("train", run_file, "learner.steps=5", "--overwrite")
    assert (said.status, said.out) == (0, "policy: P\naverage: E\nmetrics: F/metrics.jsonl\n")
    assert started == [(load_config(run_file, ["learner.steps=5"]), False, True)]


def test_sft_sets_method_objective_and_reference(
    sapo: Sapo, run_file: Path, started: list[tuple[RunConfig, bool, bool]]
) -> None:
    assert sapo("sft", run_file, "--resume").status == 0
    config, resume, overwrite = started[0]
    assert (config.method, config.objective.name, config.reference.mode) == ("sft", "sft", "none")
    assert (resume, overwrite) == (True, False)


@pytest.mark.parametrize("command", ["train", "sft", "generate", "config"])
def test_a_config_that_cannot_be_used_is_one_line(sapo: Sapo, tmp_path: Path, run_file: Path, command: str) -> None:
    assert sapo(command, tmp_path / "none.yaml").refusal == f"{tmp_path / 'none.yaml'}: no such config file"
    assert sapo(command, tmp_path).refusal == f"{tmp_path}: a folder; a YAML file is expected"
    assert "did you mean learner.steps?" in sapo(command, run_file, "learner.step=3").refusal
    assert sapo(command, run_file, "learner.steps").refusal.startswith("override 'learner.steps': ")
    assert "name a/b" in sapo(command, run_file, "name=a/b").refusal


def test_a_run_that_cannot_start_is_one_line(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    """Of the real run loop, up to where it would start Ray."""
    absent, file = tmp_path / "absent", tmp_path / "rows.jsonl"
    assert sapo("train", run_file, f"model.path={absent}").refusal == f"model.path {absent}: no such folder"
    assert sapo("train", run_file, f"data.path={absent}").refusal == f"data.path {absent}: no such file or folder"
    assert "holds no whole checkpoint" in sapo("train", run_file, "--resume").refusal
    assert sapo("train", run_file, f"output_dir={file}").refusal.startswith(f"output_dir {file}: ")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "metrics.jsonl").write_text("")
    assert "holds a run already" in sapo("train", run_file).refusal
    file.write_bytes(b'{"messages": "\xff"}\n')
    assert sapo("train", run_file).refusal.startswith(f"data.path {file}:1: not UTF-8")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    file.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    assert "has no chat template" in sapo("train", run_file).refusal


def test_a_model_that_only_the_hub_may_have_is_refused_fast_when_offline(sapo: Sapo, run_file: Path) -> None:
    began = time.monotonic()
    said = sapo("train", run_file, "model.path=some-owner/no-such-model")
    assert said.refusal.startswith("model.path some-owner/no-such-model: no tokenizer could be loaded: ")
    assert time.monotonic() - began < 60


def test_an_evaluation_that_cannot_start_is_one_line(sapo: Sapo, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": []}\n')

    def said(model: Path, prompts: Path = prompts, check: str = "demo.task:check") -> str:
        return sapo("eval", model, "--prompts", prompts, "--check", check).refusal

    assert said(tmp_path / "none") == f"model {tmp_path / 'none'}: no such folder"
    assert said(tmp_path) == f"--prompts {prompts}:1: no message before the response"
    assert said(tmp_path, tmp_path / "none.jsonl").endswith("can't be read: No such file or directory")
    assert said(tmp_path, check="demo.task:none").startswith("--check demo.task:none: ")


def test_actors_ask_for_a_cluster(sapo: Sapo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert sapo("actors", "1", "--run", "r").refusal.startswith("cluster.address: say which cluster")


def test_evaluations_are_printed_as_a_table_or_json(
    sapo: Sapo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.evaluation.evaluate import Evaluation, Share

    result = Evaluation(Share(0.5, 0.1), Share(0.25, 0.05), 10, 4)
    monkeypatch.setattr("cluster.evaluation.evaluate.evaluate", lambda *_, **__: result)
    arguments = ("eval", "one", "two", "--prompts", tmp_path / "p.jsonl", "--check", "m:f")
    found = json.loads(sapo(*arguments, "--json").out)
    assert list(found) == ["one", "two"]
    assert found["two"]["sampled"] == {"mean": 0.25, "error": 0.05}
    assert "0.250 ± 0.050" in sapo(*arguments).out


def test_other_errors_are_bugs_and_keep_their_traceback(
    sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cluster.run.loop.train", train)
    with pytest.raises(ZeroDivisionError):
        sapo("train", run_file)


def test_an_interrupted_run_says_how_to_go_on(sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.run.loop.train", train)
    said = sapo("train", run_file)
    assert said.status == 130
    assert "--resume" in said.err


def test_a_refusal_of_several_lines_is_printed_as_one(
    sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise UserError("first\n  second")

    monkeypatch.setattr("cluster.run.loop.train", train)
    assert sapo("train", run_file).refusal == "first second"


def test_the_installed_program_refuses_without_a_traceback(run_file: Path) -> None:
    arguments = [sys.executable, "-m", "cluster", "train", str(run_file), "learner.step=3"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"sapo: {run_file}: learner.step: unknown key; did you mean learner.steps?"]


def test_help_and_config_import_nothing_heavy(run_file: Path) -> None:
    """What takes seconds to import would make every look at the help take them."""
    heavy = ("torch", "transformers", "ray", "datasets", "vllm", "deepspeed", "pyarrow")
    for arguments in (["--help"], ["config", str(run_file)]):
        code = (
            f"import sys; sys.argv = ['sapo', *{arguments!r}]; from cluster.cli.app import main\n"
            f"try: main()\nexcept SystemExit: pass\nprint([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
        )
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_installed_program_trains_with_an_objective_that_lies_beside_the_configuration(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    pair = {"prompt": "write 3 numbers", "chosen": "1 2 9", "rejected": "3 3 3"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    (tmp_path / "mine.py").write_text("def loss(scores):\n    return -scores.mean_chosen.sum(), {}\n")
    values = {
        "name": "r",
        "method": "offline",
        "model": {"path": "model", "from_scratch": True, "dtype": "float32"},
        "data": {"path": "pairs.jsonl", "max_length": 64, "max_prompt_length": 32},
        "objective": {"name": "mine:loss"},
        "reference": {"mode": "none"},
        "learner": {"ranks": 1, "batch_size": 2, "steps": 2, "cpus_per_rank": 0.5},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    program = Path(sys.executable).with_name("sapo")
    done = subprocess.run([program, "train", "run.yaml"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "runs" / "r" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(-first["logps/chosen"] / 4, abs=1e-4)  # three words and the end
