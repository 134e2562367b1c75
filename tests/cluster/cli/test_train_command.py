"""``sapo train`` and ``sapo sft`` hand the run loop what the user asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from cluster.storage.checkpoints import write_manifest
from demo.model import write_model
from support.command_line import Sapo


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, bool, bool]]:
    """What the run loop was asked for, instead of a run."""
    calls: list[tuple[RunConfig, bool, bool]] = []

    def train(config: RunConfig, *, resume: bool, overwrite: bool) -> SimpleNamespace:
        calls.append((config, resume, overwrite))
        return SimpleNamespace(policy="P", ema="E", folder=Path("F"))

    monkeypatch.setattr("cluster.run.train.train", train)
    return calls


def test_train_hands_config_and_flags_on_and_prints_where_the_models_are(
    sapo: Sapo, run_file: Path, started: list[tuple[RunConfig, bool, bool]]
) -> None:
    said = sapo("train", run_file, "learner.steps=5", "--overwrite")
    assert (said.status, said.out) == (0, "policy: P\nEMA: E\nmetrics: F/metrics.jsonl\n")
    assert started == [(load_config(run_file, ["learner.steps=5"]), False, True)]


def test_sft_sets_method_objective_and_reference(
    sapo: Sapo, run_file: Path, started: list[tuple[RunConfig, bool, bool]]
) -> None:
    assert sapo("sft", run_file, "--resume").status == 0
    config, resume, overwrite = started[0]
    assert (config.method, config.objective.name, config.reference.mode) == ("sft", "sft", "none")
    assert (resume, overwrite) == (True, False)


def test_a_run_that_cannot_start_is_one_line(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    """Of the real run loop, up to where it would start Ray."""
    absent, file = tmp_path / "absent", tmp_path / "rows.jsonl"
    assert sapo("train", run_file, f"model.path={absent}").rejection == f"model.path {absent}: no such folder"
    assert sapo("train", run_file, f"data.path={absent}").rejection == f"data.path {absent}: no such file or folder"
    assert "holds no whole checkpoint" in sapo("train", run_file, "--resume").rejection
    assert sapo("train", run_file, f"output_dir={file}").rejection.startswith(f"output_dir {file}: ")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "metrics.jsonl").write_text("")
    assert "holds a run already" in sapo("train", run_file).rejection
    file.write_bytes(b'{"messages": "\xff"}\n')
    assert sapo("train", run_file).rejection.startswith(f"data.path {file}:1: not UTF-8")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    file.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    assert "has no chat template" in sapo("train", run_file).rejection


def test_a_model_that_only_the_hub_may_have_is_rejected_fast_when_offline(sapo: Sapo, run_file: Path) -> None:
    began = time.monotonic()
    said = sapo("train", run_file, "model.path=some-owner/no-such-model")
    assert said.rejection.startswith("model.path some-owner/no-such-model: no tokenizer could be loaded: ")
    assert time.monotonic() - began < 60


def test_an_interrupted_run_says_how_to_go_on(
    sapo: Sapo, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.run.train.train", train)
    said = sapo("train", run_file)
    assert (said.status, said.err) == (130, "sapo: interrupted; there is no checkpoint yet\n")
    checkpoint = tmp_path / "runs" / "r" / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, step=3, rows=1)
    said = sapo("train", run_file)
    assert (said.status, said.err) == (130, "sapo: interrupted; --resume goes on from the newest checkpoint\n")


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
