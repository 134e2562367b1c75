"""What is exported stops where it was trained to stop, and saving never fails over a generation_config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from learner.zero.export import configuration_files, save_model, saved_metadata
from learner.zero.weights import named_weights
from support.models import save_llama


@pytest.mark.parametrize(
    ("settings", "ends", "expected"),
    [
        ({"eos_token_id": 2}, (2,), 2),
        ({"eos_token_id": 2}, (2, 7), [2, 7]),
        ({"eos_token_id": [2, 5], "temperature": 0.9, "top_p": 0.6}, (2, 5, 7), [2, 5, 7]),  # Llama 2's, no do_sample
        ({"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6}, (), [2, 5]),
        (None, (2, 7), [2, 7]),
    ],
)
def test_the_exported_generation_config_names_the_ends_and_keeps_the_rest(
    tiny_llama: str, tmp_path: Path, settings: dict[str, object] | None, ends: tuple[int, ...], expected: object
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    if settings is not None:
        (tmp_path / "start").mkdir()
        (tmp_path / "start" / "generation_config.json").write_text(json.dumps(settings))
        model.generation_config = GenerationConfig.from_pretrained(tmp_path / "start")
    for name in ("policy", "ema"):
        save_model(tmp_path / name, configuration_files(model, ends), saved_metadata(model), named_weights(model, 0))
        written = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert written["eos_token_id"] == expected
        assert {k: written[k] for k in settings or () if k != "eos_token_id"} == {
            k: v for k, v in (settings or {}).items() if k != "eos_token_id"
        }
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert again.generation_config.eos_token_id == expected


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_below_one_file_is_byte_for_byte_what_transformers_saves(tmp_path: Path, tied: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "start", tied=tied), dtype=torch.bfloat16)
    save_model(tmp_path / "ours", configuration_files(model, ()), saved_metadata(model), named_weights(model, 0))
    model.save_pretrained(tmp_path / "theirs")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == sorted(
        p.name for p in (tmp_path / "theirs").iterdir()
    )
    for file in (tmp_path / "theirs").iterdir():
        if file.name != "generation_config.json":
            assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()
