"""Row attention on GPU: one variable-length FlashAttention call over gathered keys, or FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from contracts.errors import UserError
from learner.model.packing import RowLayout


def kernel_for(dtype: torch.dtype, softcap: float | None) -> Callable[..., Tensor]:
    """FlashAttention needs 16-bit floats (and its own package for a soft cap); FlexAttention takes the rest."""
    half = dtype in (torch.float16, torch.bfloat16)
    return attend_gathered if half and _flash_kernel(softcap is not None) else attend_flex


@dataclass(frozen=True)
class _Gathered:
    """The row as a ragged batch: one sequence per segment, its keys are its shared part and itself."""

    index: Tensor
    """int64 [keys]: position in the row of each key."""
    query_starts: Tensor
    """int32 [segments + 1]"""
    key_starts: Tensor
    """int32 [segments + 1]"""
    longest_query: int
    longest_key: int


_VarlenKernel = Callable[[Tensor, Tensor, Tensor, _Gathered, int, float, float | None, float], Tensor]
"""(query, key, value, plan, keys seen to the left or -1 for all, scaling, softcap, dropout) -> output; all
[tokens, heads, dim]."""


def _gather_plan(layout: RowLayout, device: torch.device) -> _Gathered:
    """Index tensors of the variable-length kernels; made once a row."""
    plan = layout.cache.get("gathered")
    if plan is None:
        parts = [
            torch.cat((torch.arange(s.shared_start, s.shared_stop), torch.arange(s.start, s.stop)))
            for s in layout.segments
        ]
        queries = torch.tensor([0] + [s.stop - s.start for s in layout.segments])
        keys = torch.tensor([0] + [len(part) for part in parts])
        plan = _Gathered(
            index=torch.cat(parts).to(device),
            query_starts=queries.cumsum(0).to(device, torch.int32),
            key_starts=keys.cumsum(0).to(device, torch.int32),
            longest_query=int(queries.max()),
            longest_key=int(keys.max()),
        )
        layout.cache["gathered"] = plan
    return plan


def attend_gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    window: int | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Arguments as ``learner.model.attention.segment_attention`` has them; [1, heads, tokens, value_dim]."""
    plan = _gather_plan(layout, query.device)
    kernel = _flash_kernel(softcap is not None)
    assert kernel is not None
    # The kernels align queries to the end of their keys: a branch sees all of its shared part.
    out = kernel(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[plan.index],
        value[0].transpose(0, 1)[plan.index],
        plan,
        -1 if window is None else window - 1,
        scaling,
        softcap,
        dropout,
    )
    return out.transpose(0, 1)[None]


@lru_cache
def _flash_kernel(capped: bool) -> _VarlenKernel | None:
    """The flash-attn package's where it is installed, else torch's, which has no soft cap."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None if capped else _torch_varlen

    def flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: _Gathered,
        left: int,
        scaling: float,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        out: Tensor = flash_attn_varlen_func(
            q,
            k,
            v,
            plan.query_starts,
            plan.key_starts,
            plan.longest_query,
            plan.longest_key,
            dropout_p=dropout,
            softmax_scale=scaling,
            causal=True,
            window_size=(left, 0 if left >= 0 else -1),
            softcap=softcap or 0.0,
            # Of the backward pass; torch's own kernel looks at the same switch.
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out

    return flash


def _torch_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: _Gathered,
    left: int,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise UserError("attention dropout needs the flash-attn package on GPU; install it or set attention_dropout 0")
    out = varlen_attn(
        q,
        k,
        v,
        plan.query_starts,
        plan.key_starts,
        plan.longest_query,
        plan.longest_key,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # a pair only when asked for the softmax statistics
    return out


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    window: int | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Arguments as ``learner.model.attention.segment_attention`` has them; [1, heads, tokens, value_dim]."""
    if dropout:
        raise UserError("FlexAttention has no dropout; set the model's attention_dropout to 0")
    score_mod = None if softcap is None else lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
    out: Tensor = _flex_kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=_block_mask(layout, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out


def _block_mask(layout: RowLayout, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    name = ("block_mask", window)
    if name not in layout.cache:
        tokens = layout.segments[-1].stop
        # A token sees [shared_start, shared_stop) and [start, itself]; positions count along its sequence.
        lengths = torch.tensor([s.stop - s.start for s in layout.segments])
        start, shared_start, shared_stop = (
            torch.tensor([getattr(s, bound) for s in layout.segments]).repeat_interleave(lengths).to(device)
            for bound in ("start", "shared_start", "shared_stop")
        )
        position = torch.arange(tokens, device=device) - start + shared_stop - shared_start

        def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = ((k >= start[q]) & (k <= q)) | ((k >= shared_start[q]) & (k < shared_stop[q]))
            return allowed if window is None else allowed & (position[q] - position[k] < window)

        layout.cache[name] = create_block_mask(sees, None, None, tokens, tokens, device=str(device))
    return layout.cache[name]


@lru_cache
def _flex_kernel(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled FlexAttention is the quadratic reference; it serves the tests on CPU.
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=True)
