"""Attention over rows whose segments share a prefix: the function that transformers calls in every layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from contracts.errors import UserError
from learner.model import attention_cpu, attention_gpu
from learner.model.packing import RowLayout

NAME = "sapo_segments"
"""What ``set_attn_implementation`` is given."""
KEYWORD = "segment_layout"
"""Keyword of the model's forward that carries the ``RowLayout`` to every attention layer."""

UNSUPPORTED = ("s_aux", "position_bias")
"""Options of transformers' attention functions that change the result and have no place here: sinks, ALiBi."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segment_layout: RowLayout | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one row under its layout, with the signature of transformers' attention functions.

    Args:
        query: [1, heads, tokens, head_dim]
        key, value: [1, key-value heads, tokens, head_dim]
        attention_mask: ignored; the layout says everything.
        sliding_window: a token sees itself and the ``sliding_window - 1`` tokens before it in its sequence.
        softcap: scores become softcap * tanh(score / softcap).

    Returns:
        [1, tokens, heads, value_dim], and None in place of attention weights.
    """
    if segment_layout is None:
        # Either the model was not called by learner.model.forward.score, or it drops keywords on the way (Nemotron).
        raise UserError(f"{type(module).__name__} was called without {KEYWORD}=; set learner.forward: padded")
    for option in UNSUPPORTED:
        if unused.get(option) is not None:
            raise UserError(f"{type(module).__name__} uses {option}: set learner.forward: padded")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    on_cpu = query.device.type == "cpu"
    attend = attention_cpu.attend_by_segment if on_cpu else attention_gpu.kernel_for(query.dtype, softcap)
    out = attend(query, key, value, segment_layout, sliding_window, scaling, softcap, dropout)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, segment_attention)
