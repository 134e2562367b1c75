"""Saves and restores a rank bit for bit, and exports Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from contracts.errors import UserError
from learner.config import OptimizerConfig
from learner.loss.reference import Reference
from learner.model.forward import causal_model
from learner.zero.ema import MovingAverage
from learner.zero.shards import Shards, gathered
from learner.zero.weights import is_adapter, named_weights


class Rank(Protocol):
    """What a checkpoint reads of a rank, and puts back."""

    rank: int
    world_size: int
    stage_number: int
    steps: int
    module: nn.Module
    shards: Shards
    average: MovingAverage
    reference: Reference
    optimizer_config: OptimizerConfig


def save(folder: Path, rank: Rank) -> None:
    """One file a rank: masters, optimizer state, average, reference, generator state, step."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "layout": _layout(rank),
            "steps": rank.steps,
            "masters": [m.detach().cpu() for m in rank.shards.masters],
            "optimizer": rank.shards.optimizer_states(),
            "average": [v.cpu() for v in rank.average.values],
            "reference": [v.cpu() for v in rank.reference.values],
            "reference_version": rank.reference.version,
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        },
        folder / f"rank-{rank.rank}.pt",
    )
    dist.barrier()


def load(folder: Path, rank: Rank) -> None:
    """Put everything back.

    Raises:
        UserError: the file is missing or of another layout.
    """
    path = folder / f"rank-{rank.rank}.pt"
    if not path.is_file():
        raise UserError(f"{path}: missing; the checkpoint was made with fewer learner.ranks, or is not on this node")
    state = torch.load(path, weights_only=True, map_location="cpu")
    layout = _layout(rank)
    if state["layout"] != layout:
        was = ", ".join(f"{k} {state['layout'].get(k)}" for k in layout if state["layout"].get(k) != layout[k])
        now = ", ".join(f"{k} {v}" for k, v in layout.items() if state["layout"].get(k) != v)
        raise UserError(f"{folder}: saved with {was}; this run has {now}; resume with what it was saved with")
    rank.steps = state["steps"]
    with torch.no_grad():
        for kept, saved in zip(rank.shards.masters, state["masters"], strict=True):
            kept.data.copy_(saved)
        for kept, saved in zip(rank.average.values, state["average"], strict=True):
            kept.copy_(saved)
        for kept, saved in zip(rank.reference.values, state["reference"], strict=True):
            kept.copy_(saved)
    rank.shards.set_optimizer_states(state["optimizer"])
    rank.reference.version = state["reference_version"]
    torch.set_rng_state(state["generator"])
    if state["device_generator"] is not None:
        torch.cuda.set_rng_state(state["device_generator"])
    rank.shards.reload()


def export(folder: Path, rank: Rank) -> None:
    """Whole weights of policy and average in the model's dtype, written by rank 0."""
    _write(folder / "policy", rank)
    with rank.shards.holding(rank.average.values):
        _write(folder / "ema", rank)
    dist.barrier()


def _write(folder: Path, rank: Rank) -> None:
    weights: dict[str, Any] = {}
    for name, tensor in named_weights(rank.module, rank.stage_number):
        if rank.rank == 0:
            weights[name] = tensor.detach().to("cpu", copy=True)
    if rank.rank == 0:
        causal_model(rank.module).save_pretrained(folder, state_dict=weights)
    module: Any = rank.module
    if hasattr(module, "peft_config"):
        adapters = [p for name, p in module.named_parameters() if is_adapter(name)]
        with gathered(adapters, rank.stage_number):
            if rank.rank == 0:
                module.save_pretrained(folder / "adapter", save_embedding_layers=False)


def _layout(rank: Rank) -> dict[str, Any]:
    return {
        "learner.ranks": rank.world_size,
        "learner.zero_stage": rank.stage_number,
        "optimizer.name": rank.optimizer_config.name,
        "weights per rank": sum(m.numel() for m in rank.shards.masters),
    }
