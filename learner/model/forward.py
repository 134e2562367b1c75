"""Log-probabilities of packed pairs by region, with and without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from contracts.errors import UserError
from contracts.pair import REGIONS
from learner.model import attention
from learner.model.packing import Mode, PackedBatch
from learner.model.token_logps import token_logps

SHARABLE_LAYERS = {"full_attention", "sliding_attention"}
WITH_SINKS = ("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "hy_v4", "deepseek_v4")
KNOWN_OBSTACLES = dict.fromkeys(WITH_SINKS, "has attention sinks") | {
    "nemotron": "does not hand the forward's keywords on to its attention"
}
"""What no config field shows. The attention function rejects a model that is missing here."""

LOGIT_SHAPES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping")
"""Fields of configs that change the head's output."""

_OWN_ATTENTION = "_attention_before_segments"


@dataclass(frozen=True)
class ForwardChoice:
    """The forward of a run."""

    mode: Mode
    reason: str
    """Why it is not ``shared``; empty when it is, or when it was asked for."""


def choose_forward(config: PreTrainedConfig, wanted: Literal["auto", "shared", "packed", "padded"]) -> ForwardChoice:
    """``auto`` is ``shared`` where the architecture allows it and ``padded`` where it does not.

    Raises:
        UserError: ``shared`` or ``packed`` was asked for and the architecture can't.
    """
    if wanted == "padded":
        return ForwardChoice("padded", "")
    obstacle = sharing_obstacle(config)
    if wanted == "auto":
        return ForwardChoice("padded", f"padded forward: {obstacle}") if obstacle else ForwardChoice("shared", "")
    if obstacle:
        raise UserError(f"learner.forward {wanted}: {obstacle}; use auto or padded")
    return ForwardChoice(wanted, "")


def sharing_obstacle(config: PreTrainedConfig) -> str | None:
    """Why several sequences can't lie in one row of this architecture; None if they can.

    Packed rows need what shared ones need: attention alone may carry information between positions, and it
    must go through transformers' attention interface.
    """
    kind = config.model_type
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        return f"{kind} is not a causal language model of transformers itself"
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - SHARABLE_LAYERS)
    obstacles = (
        (
            getattr(model_class, "_is_stateful", False),
            f"{kind} has recurrent layers, whose state would run from one sequence into the next",
        ),
        (foreign, f"{kind} has {', '.join(foreign)} layers, and only full and sliding attention can share a row"),
        (
            not getattr(model_class, "_supports_attention_backend", False),
            f"{kind} does not take its attention from transformers' attention interface",
        ),
        (getattr(config, "use_bidirectional_attention", False), f"{kind} attends in both directions"),
        (kind in KNOWN_OBSTACLES, f"{kind} {KNOWN_OBSTACLES.get(kind)}"),
    )
    return next((reason for applies, reason in obstacles if applies), None)


def score(model: nn.Module, batch: PackedBatch, chunk: int, *, prefix_grad: bool = True) -> Tensor:
    """Score the pairs of a batch; differentiable when grad mode is on.

    Args:
        model: a causal language model of transformers, or peft's LoRA wrapper around one. Under DeepSpeed its
            ``engine.module``, not the engine.
        batch: on the model's device.
        chunk: scored tokens per pass of the head; logits of more than this many never live at a time.
        prefix_grad: False computes log p(A) without gradient, for losses in which it cancels.

    Returns:
        float32 [pairs, 5]: log-probabilities in nats, summed over the regions of ``REGIONS``.
    """
    token_logps = token_scores(model, batch, chunk, prefix_grad=prefix_grad)
    pairs = len(batch.pairs)
    # Summed in float64: a response of a thousand tokens would lose the last digits otherwise.
    sums = torch.zeros(pairs * len(REGIONS), dtype=torch.float64, device=token_logps.device)
    sums = sums.index_add(0, batch.owners, token_logps.double())
    return sums.view(pairs, len(REGIONS)).float()


def token_scores(model: nn.Module, batch: PackedBatch, chunk: int, *, prefix_grad: bool = True) -> Tensor:
    """float32 [scored]: log-probability in nats of every scored token of the batch, in its order."""
    causal = causal_model(model)
    _use_attention(causal, batch)
    head, base = causal.get_output_embeddings(), cast(nn.Module, causal.base_model)
    if base is causal:  # Llama 4's prefix names no module of it
        base = cast(nn.Module, causal.model)

    def forward(input_ids: Tensor) -> Tensor:
        arguments = {} if batch.layout is None else {attention.KEYWORD: batch.layout}
        hidden = base(
            input_ids=input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **arguments,
        ).last_hidden_state
        hidden = hidden.flatten(0, 1)[batch.predictors]
        return _head_logps(head, hidden, batch.targets, 0 if prefix_grad else batch.prefix_scored, chunk, causal.config)

    # ZeRO-3 begins a new trace at the call of the root module, so the root must be called.
    with _forward_replaced(model, forward):
        logps: Tensor = model(batch.input_ids)
    return logps


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    unwrapped = unwrap() if unwrap else model
    if not isinstance(unwrapped, PreTrainedModel):
        raise TypeError(f"{type(model).__name__} is not a transformers model (nor peft's wrapper around one)")
    return unwrapped


def shape_logits(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """What the model does to its head's output, [..., vocabulary]: scales, then soft cap, both in fp32. The logits of a
    model that does neither come back as they are.

    The factors are Granite's (divides), Cohere's and Falcon-H1's (multiply), the cap is Gemma's.
    """
    if any(getattr(config, name, None) for name in LOGIT_SHAPES):
        logits = logits.float()
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    for name in ("logit_scale", "lm_head_multiplier"):
        if factor := getattr(config, name, None):
            logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def _head_logps(
    head: nn.Module, hidden: Tensor, targets: Tensor, without_grad: int, chunk: int, config: PreTrainedConfig
) -> Tensor:
    """[scored]: the head on ``hidden`` [scored, hidden] in chunks, recomputed in the backward pass.

    One call of the head's module holds all chunks: ZeRO-3 gathers its weight once, and ranks with different
    numbers of scored tokens still make the same number of gathers.
    """
    head_forward = head.forward

    def one_chunk(states: Tensor, wanted: Tensor) -> Tensor:
        return token_logps(shape_logits(head_forward(states), config), wanted)

    def chunked(states: Tensor) -> Tensor:
        parts = []
        if without_grad:
            with torch.no_grad():
                for at in range(0, without_grad, chunk):
                    upto = min(at + chunk, without_grad)
                    parts.append(one_chunk(states[at:upto], targets[at:upto]))
        # A single chunk may keep its logits until the backward: no more than a chunk lives either way.
        once = len(states) - without_grad <= chunk
        for at in range(without_grad, len(states), chunk):
            arguments = states[at : at + chunk], targets[at : at + chunk]
            recompute = torch.is_grad_enabled() and not once
            parts.append(checkpoint(one_chunk, *arguments, use_reentrant=False) if recompute else one_chunk(*arguments))
        # Nothing to score: empty, yet part of the graph, so that the backward runs on this rank too.
        return torch.cat(parts) if parts else states.float().sum(-1)

    with _forward_replaced(head, chunked):
        logps: Tensor = head(hidden)
    return logps


def _use_attention(causal: PreTrainedModel, batch: PackedBatch) -> None:
    """Rows with a layout run on our attention function, padded ones on the model's own.

    It stays set after the call: gradient checkpointing runs the layers again in the backward pass.
    """
    current = causal.config._attn_implementation
    if batch.layout is not None and current != attention.NAME:
        setattr(causal, _OWN_ATTENTION, current)
        causal.set_attn_implementation(attention.NAME)
    elif batch.layout is None and current == attention.NAME:
        causal.set_attn_implementation(getattr(causal, _OWN_ATTENTION))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module(...)`` runs ``forward`` between the module's hooks (DeepSpeed gathers parameters in them)."""
    kept = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if kept is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = kept
