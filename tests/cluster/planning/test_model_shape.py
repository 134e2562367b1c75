"""A model's shape from its config.json, against published counts and formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MixtralConfig

from cluster.planning.model_shape import read_shape
from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MISTRAL_7B = LLAMA_3_8B | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000}


def folder_of(folder: Path, config: dict[str, Any]) -> str:
    """A model without weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "parameters", "largest"),
    [(LLAMA_3_8B, 8_030_261_248, 525_336_576), (MISTRAL_7B, 7_241_732_096, 131_072_000)],
)
def test_published_counts_are_met_without_weights(
    tmp_path: Path, config: dict[str, Any], parameters: int, largest: int
) -> None:
    shape = read_shape(ModelConfig(path=folder_of(tmp_path, config)))
    assert (shape.parameters, shape.trainable, shape.largest) == (parameters, parameters, largest)
    assert shape.active == parameters - largest  # the input embedding is looked up
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_size) == (32, 32, 8, 128)


def test_a_tied_head_is_counted_once_and_multiplied_with(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    shape = read_shape(ModelConfig(path=str(tmp_path)))
    attention = 2 * 96 * 96 + 2 * 96 * 32
    assert shape.parameters == shape.active == 64 * 96 + 3 * (attention + 3 * 96 * 384 + 2 * 96) + 96


def test_experts_that_a_token_skips_cost_memory_and_no_time(tmp_path: Path) -> None:
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    shape = read_shape(ModelConfig(path=str(tmp_path)))
    expert = 3 * 32 * 64
    assert shape.parameters - shape.active == 50 * 32 + 2 * 6 * expert
    assert shape.intermediate == 2 * 64


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    path = folder_of(tmp_path, LLAMA_3_8B)
    everywhere = read_shape(ModelConfig(path=path, lora=LoraConfig(rank=16)))
    # peft prints 41,943,040 trainable parameters for Llama-3-8B at rank 16 on all linear layers.
    assert everywhere.trainable == 41_943_040
    queries = read_shape(ModelConfig(path=path, lora=LoraConfig(rank=8, target_modules=("q_proj",))))
    assert queries.trainable == 32 * 8 * (4096 + 4096)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_shape(ModelConfig(path=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"config\.json can't be read"):
        read_shape(ModelConfig(path=folder_of(tmp_path, {"model_type": "no-such-kind"})))
