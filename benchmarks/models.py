"""Random Llamas of known size, for benchmarks in which only shapes matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SHAPES = {
    #         hidden, layers, heads, intermediate
    "3M": (256, 3, 8, 704),
    "10M": (384, 6, 6, 1024),
    "30M": (512, 8, 8, 1408),
    "110M": (896, 10, 14, 2432),
}


def with_random_weights(folder: Path, dtype: str = "float32", device: str = "cpu", **changes: Any) -> None:
    """Add weights to a folder that holds a config.json and a tokenizer.

    Args:
        device: on which they are drawn; of billions, a GPU draws them in seconds.
        changes: to the model's configuration.
    """
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, **changes)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def write_llama(folder: Path, size: str, vocabulary: int) -> str:
    """Save one in fp32; returns its folder."""
    hidden, layers, heads, intermediate = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    path = folder / f"llama-{size}"
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)
