"""Writes policy and EMA as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from learner.model.adapters import is_adapter
from learner.model.forward import causal_model
from learner.zero.ema import Ema
from learner.zero.shards import Shards, gathered
from learner.zero.weights import named_weights


def export(folder: Path, module: nn.Module, shards: Shards, ema: Ema) -> None:
    """Whole weights in the model's dtype in policy/ and ema/, written by rank 0. All ranks together."""
    _write(folder / "policy", module, shards.zero_stage)
    with shards.holding(ema.values):
        _write(folder / "ema", module, shards.zero_stage)
    dist.barrier()


def _write(folder: Path, module: nn.Module, zero_stage: int) -> None:
    writes = dist.get_rank() == 0
    weights: dict[str, Any] = {}
    for name, tensor in named_weights(module, zero_stage):
        if writes:
            weights[name] = tensor.detach().to("cpu", copy=True)
    if writes:
        # The weights are in the checkpoint's format already.
        causal_model(module).save_pretrained(folder, state_dict=weights, save_original_format=False)
    if hasattr(module, "peft_config"):
        adapters = [p for name, p in module.named_parameters() if is_adapter(name)]
        adapted: Any = module
        with gathered(adapters, zero_stage):
            if writes:
                adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
