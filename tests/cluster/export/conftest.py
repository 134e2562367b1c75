"""A run with a checkpoint, made by hand: a tiny model with LoRA adapters, their whole weights as policy and EMA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.storage.checkpoints import write_manifest
from demo.model import write_model
from support.run_folders import make_run

STEP = 20


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder; beside it ``start``, the model that it started from."""
    folder = tmp_path_factory.mktemp("trained")
    write_model(folder / "start", hidden=64, layers=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "start")).save_pretrained(folder / "start")
    (folder / "start" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    run = make_run(
        folder / "run",
        model={"path": str(folder / "start"), "dtype": "float32", "lora": {"rank": 4}},
        data={"path": "owner/rows"},
    )
    checkpoint = run / "checkpoints" / f"step-{STEP}"
    for seed, name in enumerate(("policy", "ema")):
        base: Any = AutoModelForCausalLM.from_pretrained(folder / "start")
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        shutil.copytree(folder / "start", checkpoint / name)
        adapted.save_pretrained(checkpoint / name / "adapter")
        adapted.merge_and_unload().save_pretrained(checkpoint / name)
    shutil.copy(run / "config.yaml", checkpoint)
    write_manifest(checkpoint, step=STEP, data="fingerprint", total_steps=30)
    return run


@pytest.fixture
def without_adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that trained all weights."""
    run = shutil.copytree(trained, tmp_path / "whole")
    checkpoint = run / "checkpoints" / f"step-{STEP}"
    shutil.rmtree(checkpoint / "policy" / "adapter")
    values = yaml.safe_load((checkpoint / "config.yaml").read_text())
    values["model"]["lora"] = None
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(values))
    write_manifest(checkpoint, step=STEP, data="fingerprint", total_steps=30)
    return Path(run)
