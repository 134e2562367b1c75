"""Attention over rows whose segments share a prefix: the function that transformers calls in every layer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from contracts.errors import UserError
from learner.model.packing import Layout, Segment

NAME = "sapo_segments"
"""What ``set_attn_implementation`` is given."""
KEYWORD = "segment_layout"
"""Keyword of the model's forward that carries the ``Layout`` to every attention layer."""

REFUSED = ("s_aux", "position_bias")
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
    segment_layout: Layout | None = None,
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
    for option in REFUSED:
        if unused.get(option) is not None:
            raise UserError(f"{type(module).__name__} uses {option}: set learner.forward: padded")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    run = _by_segment if query.device.type == "cpu" else _gpu_route(query.dtype, softcap)
    out = run(query, key, value, segment_layout, sliding_window, scaling, softcap, dropout)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, segment_attention)


# ---- CPU: scaled-dot-product attention segment by segment, small ones together ------------------------------

SMALL = 128
"""Blocks with at most so many keys are computed together: apart, the calls would cost more than the arithmetic."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries [start, stop) and their keys: [shared_start, shared_stop) then [own_start, stop)."""

    start: int
    stop: int
    shared_start: int
    shared_stop: int
    own_start: int

    @property
    def keys(self) -> int:
        return self.shared_stop - self.shared_start + self.stop - self.own_start


def _blocks(segment: Segment, window: int | None) -> list[_Block]:
    """The segment in one block; under a window shorter than its keys, in blocks of the window's length with
    only the keys they can see, so that the cost is tokens * window."""
    start, stop, first, last = segment.start, segment.stop, segment.shared_start, segment.shared_stop
    if window is None or window >= (last - first) + (stop - start):
        return [_Block(start, stop, first, last, start)]
    blocks = []
    for a in range(start, stop, window):
        own = max(start, a - window + 1)
        from_shared = max(0, window - 1 - (a - start))  # how many shared tokens the first query sees
        blocks.append(_Block(a, min(a + window, stop), max(first, last - from_shared), last, own))
    return blocks


@dataclass(frozen=True)
class _Together:
    """Small blocks as one padded batch."""

    queries: Tensor
    """int64 [blocks, padded queries]: position in the row; padding repeats the block's first."""
    keys: Tensor
    """int64 [blocks, padded keys]: padding likewise."""
    seen: Tensor
    """bool [blocks, 1, padded queries, padded keys]"""
    real: Tensor
    """int64 [tokens]: where, among blocks * padded queries, the real queries lie."""


@dataclass(frozen=True, slots=True)
class _Alone:
    """A block that is computed by itself, in terms of the parts into which the row is cut."""

    block: _Block
    queries: int
    """Which part of the queries; it is the block's."""
    keys: int
    """Which part of the keys; it is a pair's or a document's."""
    offset: int
    """Where that part begins in the row."""


@dataclass(frozen=True)
class _CpuPlan:
    alone: tuple[_Alone, ...]
    query_parts: tuple[int, ...]
    key_parts: tuple[int, ...]
    """Lengths of the parts; together they are the row. Its states are cut into parts once and a block takes its keys
    from a part: the backward of a slice fills a tensor as long as what it was cut from with zeros, and a row has
    hundreds of slices."""
    together: tuple[_Together, ...]
    order: Tensor | None
    """int64 [tokens of the row]: where each token lies when the outputs of ``alone`` and of ``together`` are put side
    by side; None if that is the row's own order."""


def _cpu_plan(layout: Layout, window: int | None, device: torch.device) -> _CpuPlan:
    plan = layout.cache.get(("cpu", window))
    if plan is not None:
        return plan
    alone: list[_Block] = []
    small: dict[tuple[int, int], list[_Block]] = {}
    for block in (block for segment in layout.segments for block in _blocks(segment, window)):
        if block.keys > SMALL:
            alone.append(block)
        else:
            small.setdefault((_padded(block.stop - block.start), _padded(block.keys)), []).append(block)
    in_order = [*alone, *(block for blocks in small.values() for block in blocks)]
    positions = torch.cat([torch.arange(b.start, b.stop, device=device) for b in in_order])
    tokens = layout.segments[-1].stop
    query_cuts = _cuts((bound for b in alone for bound in (b.start, b.stop)), tokens)
    key_cuts = _cuts((s.start for s in layout.segments if s.shared_start == s.shared_stop), tokens)
    plan = _CpuPlan(
        alone=tuple(
            _Alone(b, query_cuts.index(b.start), part, key_cuts[part])
            for b in alone
            for part in [bisect_right(key_cuts, min(b.own_start, b.shared_start)) - 1]
        ),
        query_parts=tuple(b - a for a, b in pairwise(query_cuts)),
        key_parts=tuple(b - a for a, b in pairwise(key_cuts)),
        together=tuple(_pad(blocks, *size, window, device) for size, blocks in small.items()),
        order=positions.argsort() if small else None,
    )
    layout.cache["cpu", window] = plan
    return plan


def _cuts(bounds: Iterable[int], tokens: int) -> list[int]:
    return sorted({0, *bounds, tokens})


def _padded(length: int) -> int:
    """The next multiple of 16: by the block's own length alone, so that its result does not depend, to the last bit, on
    what else is in the row. A pair's reference log-probabilities are kept and meet other rows later."""
    return -(-length // 16) * 16


def _pad(blocks: list[_Block], queries: int, keys_at_most: int, window: int | None, device: torch.device) -> _Together:
    def column(values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), device=device)[:, None]

    start, stop = column(b.start for b in blocks), column(b.stop for b in blocks)
    own, keys = column(b.own_start for b in blocks), column(b.keys for b in blocks)
    first, shared = column(b.shared_start for b in blocks), column(b.shared_stop - b.shared_start for b in blocks)
    query, key = torch.arange(queries, device=device), torch.arange(keys_at_most, device=device)
    distance = (keys - (stop - start) + query)[:, :, None] - key
    seen = (distance >= 0) & (key < keys)[:, None]
    if window is not None:
        seen &= distance < window
    is_query = query < stop - start
    # Padded queries see what their block's first one sees: a query that sees nothing has no softmax.
    seen = torch.where(is_query[:, :, None], seen, seen[:, :1])
    position = torch.where(key < shared, first + key, own + key - shared)
    return _Together(
        queries=torch.where(is_query, start + query, start),
        keys=torch.where(key < keys, position, start),
        seen=seen[:, None],
        real=is_query.flatten().nonzero()[:, 0],
    )


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    plan = _cpu_plan(layout, window, query.device)
    queries, keys, values = (
        states.split(parts, dim=2)
        for states, parts in ((query, plan.query_parts), (key, plan.key_parts), (value, plan.key_parts))
    )
    outputs = [
        _attend(
            queries[a.queries],
            _keys_of(keys[a.keys], a),
            _keys_of(values[a.keys], a),
            _band(layout, a.block.stop - a.block.start, a.block.keys, window, query.device),
            scaling,
            softcap,
            dropout,
        )
        for a in plan.alone
    ]
    for group in plan.together:
        q, k, v = (
            states[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
            for states, index in ((query, group.queries), (key, group.keys), (value, group.keys))
        )
        out = _attend(q, k, v, group.seen, scaling, softcap, dropout)  # [blocks, heads, padded queries, value_dim]
        out = out.transpose(0, 1).flatten(1, 2)  # [heads, blocks * padded queries, value_dim]
        outputs.append(out.index_select(1, group.real)[None])
    joined = torch.cat(outputs, dim=2)
    return joined if plan.order is None else joined.index_select(2, plan.order)


def _keys_of(states: Tensor, alone: _Alone) -> Tensor:
    """``states``: the block's part of the row."""
    first, last, start, stop = (
        bound - alone.offset
        for bound in (alone.block.shared_start, alone.block.shared_stop, alone.block.own_start, alone.block.stop)
    )
    if first == last:
        return states[:, :, start:stop]
    if last == start:  # a pair's first branch lies beside the shared part: no copy to keep
        return states[:, :, first:stop]
    return torch.cat((states[:, :, first:last], states[:, :, start:stop]), dim=2)


def _band(layout: Layout, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [queries, keys], True where a query sees a key: the queries are the last of the keys. None: plain causal."""
    if queries == keys and (window is None or window >= keys):
        return None
    name = ("band", queries, keys, window)
    band = layout.cache.get(name)
    if band is None:
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
        band = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        layout.cache[name] = band
    return band


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Tensor | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    if softcap is not None:
        return _capped(query, key, value, band, scaling, softcap, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        dropout_p=dropout,
        is_causal=band is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(
    query: Tensor, key: Tensor, value: Tensor, band: Tensor | None, scaling: float, softcap: float, dropout: float
) -> Tensor:
    """SDPA knows no soft cap: the same in plain steps, softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    if band is None:
        band = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~band, float("-inf"))
    weights = F.dropout(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), dropout)
    return weights @ value


# ---- GPU: one variable-length FlashAttention call over gathered keys, or FlexAttention ----------------------


def _gpu_route(dtype: torch.dtype, softcap: float | None) -> Callable[..., Tensor]:
    """FlashAttention needs 16-bit floats (and its own package for a soft cap); FlexAttention takes the rest."""
    half = dtype in (torch.float16, torch.bfloat16)
    return _varlen if half and _flash_kernel(softcap is not None) else _flex


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


def gather_plan(layout: Layout, device: torch.device) -> _Gathered:
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


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    plan = gather_plan(layout, query.device)
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
def _flash_kernel(capped: bool) -> Callable[..., Tensor] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None if capped else _torch_varlen

    def flash(q, k, v, plan, left, scaling, softcap, dropout):
        return flash_attn_varlen_func(
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
        )

    return flash


def _torch_varlen(q, k, v, plan, left, scaling, softcap, dropout) -> Tensor:
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


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    if dropout:
        raise UserError("FlexAttention has no dropout; set the model's attention_dropout to 0")
    score_mod = None if softcap is None else lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
    return _flex_kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=_block_mask(layout, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _block_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
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
