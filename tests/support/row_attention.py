"""What the tests of row attention share: a row of pairs, its states, and attention computed query by query."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.model.packing import RowLayout, Segment

SEGMENTS = (
    Segment(0, 9, 0, 0),
    Segment(9, 14, 0, 9),
    Segment(14, 21, 0, 9),  # a pair
    Segment(21, 24, 21, 21),
    Segment(24, 25, 21, 24),  # a pair without a second branch
    Segment(25, 29, 25, 25),
    Segment(29, 35, 29, 29),  # a pair that shares nothing
)
TOKENS, HEADS, KEY_HEADS, DIM = 35, 4, 2, 16
WINDOWS = [None, 1, 3, 6, 11, 50]


def states(seed: int = 0, key_heads: int = KEY_HEADS) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each [1, heads, tokens, dim]."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, h, TOKENS, DIM, generator=generator).requires_grad_() for h in (HEADS, key_heads, key_heads)
    )
    return q, k, v


def brute_force(q: Tensor, k: Tensor, v: Tensor, window: int | None, scaling: float, softcap: float | None) -> Tensor:
    """[1, tokens, heads, dim], query by query."""
    groups = q.shape[1] // k.shape[1]
    rows = []
    for segment in SEGMENTS:
        for i in range(segment.start, segment.stop):
            seen = [*range(segment.shared_start, segment.shared_stop), *range(segment.start, i + 1)]
            seen = seen[-window:] if window else seen
            heads = []
            for h in range(q.shape[1]):
                scores = k[0, h // groups, seen] @ q[0, h, i] * scaling
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                heads.append(torch.softmax(scores, 0) @ v[0, h // groups, seen])
            rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


def check_against_brute_force(
    attend: Callable[..., Tensor], window: int | None, softcap: float | None, key_heads: int = KEY_HEADS
) -> None:
    """Values and gradients."""
    q, k, v = states(key_heads=key_heads)
    expected = brute_force(q, k, v, window, 0.3, softcap)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    out = attend(q, k, v, RowLayout(SEGMENTS), window, 0.3, softcap, 0.0).transpose(1, 2)
    assert (out - expected).abs().max() <= 1e-5
    for ours, other in zip(torch.autograd.grad((out * weights).sum(), (q, k, v)), theirs, strict=True):
        assert (ours - other).abs().max() <= 1e-5
