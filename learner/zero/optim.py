"""Optimizer, learning-rate schedule and DeepSpeed configuration of a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adam import adam

from learner.config import LearnerConfig, ModelConfig, OptimizerConfig
from learner.deepspeed_arguments import merged

SLICE = 1 << 24
"""Elements that a fused RMSprop works on at a time. Few and long: threads wait for each other at the end of each."""
FAR = 1e8
"""A step count at which no bias correction is left."""


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay, or RMSprop (SAPO's DPO recipe).

    Args:
        fused: in one pass over memory, by torch's own kernel. It rounds otherwise than torch's plain optimizers.
    """
    if config.name == "rmsprop":
        kind = FusedRMSprop if fused else torch.optim.RMSprop
        return kind(parameters, lr=config.lr, alpha=config.alpha, eps=config.eps, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused
    )


class FusedRMSprop(torch.optim.RMSprop):
    """torch's RMSprop by torch's fused kernel for Adam, which without a first moment and bias correction it is.

    torch has no fused RMSprop: each operation of its own runs over the whole shard, and makes a tensor as large.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """``closure`` is for torch's interface alone."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": torch.zeros(()), "square_avg": torch.zeros_like(parameter)}
                state["step"] += 1
                whole = parameter, parameter.grad.contiguous(), state["square_avg"]
                moment = torch.empty(min(SLICE, parameter.numel()), dtype=parameter.dtype, device=parameter.device)
                far = torch.full((), FAR, device=parameter.device)
                for values, grad, square_avg in zip(*(t.view(-1).split(SLICE) for t in whole), strict=True):
                    adam(
                        [values],
                        [grad],
                        # It must be zero before, or the gradient could be lost in its rounding.
                        [moment[: len(values)].zero_()],
                        [square_avg],
                        [],
                        [far],
                        fused=True,
                        amsgrad=False,
                        maximize=False,
                        beta1=0.0,
                        beta2=group["alpha"],
                        lr=group["lr"],
                        weight_decay=group["weight_decay"],
                        eps=group["eps"],
                    )


def warmup_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Optimizer steps of linear warm-up."""
    return math.ceil(config.warmup_ratio * total_steps) if config.warmup_steps is None else config.warmup_steps


def schedule(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """The factor on the peak rate at optimizer step s (from 0), after the warm-up as transformers' schedulers of the
    same names give it.

    linear: (total - s) / (total - warm); cosine: half a cosine from 1 to 0; inverse_sqrt: sqrt(warm / s), with a time
    scale of 10,000 steps where there is no warm-up; constant: 1. Before: (s + 1) / (warm + 1), so that no step is made
    at rate 0, as transformers' first one is.
    """
    warm = warmup_steps(config, total_steps)
    scale = warm or 10_000

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "inverse_sqrt":
            return 1.0 / math.sqrt((step + scale - warm) / scale)
        done = (step - warm) / max(1, total_steps - warm)
        if config.schedule == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
        return max(0.0, 1.0 - done)

    return factor


def total_steps_note(config: OptimizerConfig, step: int, before: int | None, now: int) -> str:
    """What a run that goes on at ``step`` with another number of steps in all should know; empty where nothing
    changes."""
    if before is None or before == now:
        return ""
    was, is_now = (config.lr * schedule(config, total)(step) for total in (before, now))
    if was == is_now:
        return ""
    return (
        f"learning rate: this run has {now} steps, and had {before} when its checkpoint was written: {config.schedule} "
        f"with {warmup_steps(config, now)} warm-up steps goes on at {is_now:.3g}, and would have at {was:.3g}"
    )


def effective_zero_stage(model: ModelConfig, learner: LearnerConfig) -> int:
    """bf16 needs fp32 master weights and fp32 sums of gradients; in DeepSpeed ZeRO 2 is the first that has both."""
    return max(2, learner.zero_stage) if model.dtype == "bfloat16" else learner.zero_stage


def deepspeed_config(
    model: ModelConfig, learner: LearnerConfig, optimizer: OptimizerConfig, *, on_gpu: bool = False
) -> dict[str, Any]:
    """What ``deepspeed.initialize`` is given, with ``learner.deepspeed`` merged in.

    Accumulation boundaries are set by hand in learner/passes.py.
    """
    # Threshold 0: no parameter stays gathered between steps: learner/zero/shards.py changes them all in place.
    zero: dict[str, Any] = {"stage": effective_zero_stage(model, learner), "stage3_param_persistence_threshold": 0}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # With False the optimizer that we pass is used as it is when its state is offloaded.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
    }
    if model.dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
        # In bf16 the sum over micro-batches would depend on how many there are.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(config, learner.deepspeed)
