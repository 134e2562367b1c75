"""The command line in this process, and a run that it could start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from cluster.cli.app import main
from demo.model import write_model
from support.command_line import Said, Sapo


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
def weights(tmp_path: Path, run_file: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The run's model gets weights: engines could start from it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "model"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    capsys.readouterr()
    values = yaml.safe_load(run_file.read_text())
    values["data"] |= {"max_length": 32, "max_prompt_length": 16}
    values["generation"] = {"segment_length": 1}
    values["learner"] = {"batch_size": 4, "tokens_per_batch": 256}
    run_file.write_text(yaml.safe_dump(values))
    return folder
