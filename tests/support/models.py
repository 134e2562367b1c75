"""Tiny models of 0.1 M random weights, and their log-probabilities by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

IDS: dict[str, Any] = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = IDS | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    # The scale of the weights makes the distribution uneven.
    "initializer_range": 0.08,
}
"""Sizes that a Llama and what has its layers take."""


def save_llama(folder: Path, *, tied: bool, seed: int = 0, **changes: Any) -> str:
    """Save one with random weights; ``changes``: to its sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**LLAMA | changes, tie_word_embeddings=tied)).save_pretrained(folder)
    return str(folder)


def token_logps(model: torch.nn.Module, sequence: Sequence[int]) -> np.ndarray:
    """float32 [tokens - 1]: log-probability in nats of every token but the first, by one forward."""
    import torch

    ids = torch.tensor(sequence, device=next(model.parameters()).device)[None]
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
