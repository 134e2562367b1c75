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

PROGRAMS = 32
"""That torch may compile FlexAttention to before it goes on without compiling, with a matrix of all tokens."""
BLOCK = 128
"""Queries and keys of a block of FlexAttention; torch's own default."""


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
    out: Tensor = _flex_kernel(query.device.type, softcap is not None)(
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
    """FlexAttention's mask, made once a row: which blocks of BLOCK x BLOCK are seen whole, in part or not at all."""
    from torch.nn.attention.flex_attention import BlockMask

    name = ("block_mask", window)
    if name not in layout.cache:
        tokens = layout.segments[-1].stop
        # A token sees [shared_start, shared_stop) and [start, itself]; positions count along its sequence.
        lengths = torch.tensor([s.stop - s.start for s in layout.segments])
        start, shared_start, shared_stop = (
            torch.tensor([getattr(s, bound) for s in layout.segments]).repeat_interleave(lengths)
            for bound in ("start", "shared_start", "shared_stop")
        )
        query = torch.arange(tokens)
        position = query - start + shared_stop - shared_start
        first_seen = position - tokens if window is None else position - window + 1
        seen = _seen_in_blocks(query, torch.maximum(start, query - position + first_seen), query + 1)
        seen += _seen_in_blocks(query, torch.maximum(shared_start, shared_start + first_seen), shared_stop)
        start, shared_start, shared_stop, position = (
            t.to(device) for t in (start, shared_start, shared_stop, position)
        )

        def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = ((k >= start[q]) & (k <= q)) | ((k >= shared_start[q]) & (k < shared_stop[q]))
            return allowed if window is None else allowed & (position[q] - position[k] < window)

        whole = seen == BLOCK * BLOCK
        layout.cache[name] = BlockMask.from_kv_blocks(
            *_listed((seen > 0) & ~whole, device),
            *_listed(whole, device),
            BLOCK_SIZE=BLOCK,
            mask_mod=sees,
            seq_lengths=(tokens, tokens),
        )
    return layout.cache[name]


def _seen_in_blocks(query: Tensor, first: Tensor, stop: Tensor) -> Tensor:
    """int64 [query blocks, key blocks]: how many (query, key) there see each other, where each query sees the keys
    [first, stop), all int64 [tokens]; none where ``first`` is not below ``stop``.

    Torch's ``create_block_mask`` counts in a mask of tokens x tokens, a gigabyte for 32 k tokens. Here the count of an
    interval is the difference of two ramps over the blocks, and a ramp is written as its two steps.
    """
    blocks = -(-len(query) // BLOCK)
    steps = torch.zeros(blocks, blocks + 2, dtype=torch.int64)
    row = query // BLOCK
    for bound, sign in ((stop, 1), (torch.minimum(first, stop), -1)):
        # Keys before ``bound``: BLOCK in each block before its own, the rest in its own.
        own, rest = bound // BLOCK, bound % BLOCK
        steps.index_put_((row, torch.zeros_like(row)), torch.tensor(sign * BLOCK), accumulate=True)
        steps.index_put_((row, own), sign * (rest - BLOCK), accumulate=True)
        steps.index_put_((row, own + 1), -sign * rest, accumulate=True)
    return steps.cumsum(1)[:, :blocks]


def _listed(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks are chosen in each row, int32 [1, 1, rows], and all blocks with those first, [1, 1, rows,
    columns], as ``BlockMask`` takes them."""
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1)[None, None].to(device, torch.int32), order[None, None].to(device, torch.int32)


@lru_cache
def _flex_kernel(device_type: str, capped: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled FlexAttention is the quadratic reference; it serves the tests on CPU.
    if device_type == "cpu":
        return flex_attention
    # Told that everything varies, torch makes a variable of the soft cap too, and fails on the GPU. It finds out by
    # itself that lengths vary; with windows and gradients, on or off, these are more programs than it makes by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    return torch.compile(flex_attention, dynamic=None if capped else True)
