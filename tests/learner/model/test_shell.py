"""The empty shell is the model that a rank loads, without its weights: nothing that loads is rejected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig
from learner.model.checkpoint_config import read_config
from learner.model.forward import causal_model
from learner.model.loading import load_model
from learner.model.shell import Shell, open_shell
from learner.zero.weights import metadata, validate_publishable
from support.architectures import ALL, build
from support.checkpoints import Weights, with_weights


def opened(config: ModelConfig, vocabulary: int = 0) -> Shell:
    return open_shell(config, read_config(config.path), vocabulary)


@pytest.mark.parametrize("architecture", ALL)
def test_every_architecture_has_the_shell_that_its_weights_fit(architecture: str, tmp_path: Path) -> None:
    build(architecture).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="float32")
    shell = opened(config)
    assert shell.unused == ()
    validate_publishable(shell.module)
    loaded = load_model(config, 0)
    assert metadata(shell.module) == metadata(loaded)
    assert {p.device.type for p in shell.module.parameters()} == {"meta"}
    embedding = causal_model(loaded).get_input_embeddings()
    assert shell.vocabulary == embedding.num_embeddings


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_and_adapters_are_part_of_it(tied: bool, tiny_llama: str, tiny_llama_tied: str) -> None:
    path = tiny_llama_tied if tied else tiny_llama
    shell = opened(ModelConfig(path=path, lora=LoraConfig(rank=2)))
    assert hasattr(shell.module, "peft_config")
    assert opened(ModelConfig(path=path), 130).vocabulary == 192
    assert opened(ModelConfig(path=path), 100).vocabulary == 128


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",  # Llama's until 2023
        "model.rotary_emb.inv_freq",
    ],
)
def test_buffers_that_older_versions_saved_are_no_weights_without_a_place(
    name: str, tiny_llama: str, tmp_path: Path
) -> None:
    def older(weights: Weights) -> Weights:
        return weights | {name: torch.zeros(16)}

    folder = with_weights(tiny_llama, tmp_path / "m", older)
    assert opened(ModelConfig(path=str(folder))).unused == ()


def test_nothing_is_printed_and_transformers_says_as_much_as_before(
    tiny_llama: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def valued(weights: Weights) -> Weights:
        return weights | {"v_head.weight": torch.zeros(1, 64)}

    level = logging.get_verbosity()
    folder = with_weights(tiny_llama, tmp_path / "m", valued)
    assert opened(ModelConfig(path=str(folder))).unused == ("v_head.weight",)
    with pytest.raises(UserError):
        opened(ModelConfig(path=str(folder), lora=LoraConfig(target_modules=("nothing",))))
    assert logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")
