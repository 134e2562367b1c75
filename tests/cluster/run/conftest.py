"""A small model with its tokenizer, and a run on it that nothing speaks against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from demo.model import write_model

RunOf = Callable[..., RunConfig]
"""From changed fields, ``key.sub=value``, to the config of a run."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer of 62 words, and random weights for 64; head and embedding are tied."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("checked-model")
    write_model(folder, hidden=64, layers=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def run_of(model: Path, tmp_path: Path) -> RunOf:
    turns = [{"role": "user", "content": "write 3 numbers"}, {"role": "assistant", "content": "1 2 9"}]
    (tmp_path / "rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 8)
    values: dict[str, Any] = {
        "name": "r",
        "output_dir": str(tmp_path / "runs"),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(tmp_path / "rows.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "generation": {"segment_length": 1},
        "learner": {"batch_size": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return lambda *overrides: load_config(tmp_path / "run.yaml", overrides)
