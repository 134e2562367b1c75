"""Row attention on CPU: scaled-dot-product attention segment by segment, small segments together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.model.packing import RowLayout, Segment

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
class _Plan:
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


def _plan(layout: RowLayout, window: int | None, device: torch.device) -> _Plan:
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
    plan = _Plan(
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


def attend_by_segment(
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
    plan = _plan(layout, window, query.device)
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


def _band(layout: RowLayout, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [queries, keys], True where a query sees a key: the queries are the last of the keys. None: causal alone."""
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
    """SDPA knows no soft cap: the same written out, softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    if band is None:
        band = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~band, float("-inf"))
    weights = F.dropout(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), dropout)
    return weights @ value
