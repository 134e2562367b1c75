"""Every route of the attention function gives what a brute-force attention over each sequence gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import UserError
from learner.model import attention
from learner.model.packing import Layout, Segment

LAYOUT = (
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
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, h, TOKENS, DIM, generator=generator).requires_grad_() for h in (HEADS, key_heads, key_heads)
    )
    return q, k, v


def brute_force(q: Tensor, k: Tensor, v: Tensor, window: int | None, scaling: float, softcap: float | None) -> Tensor:
    """[1, tokens, heads, dim], query by query."""
    groups = q.shape[1] // k.shape[1]
    rows = []
    for segment in LAYOUT:
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


def flash_stand_in(q, k, v, plan, left, scaling, softcap, dropout) -> Tensor:
    """What FlashAttention's variable-length kernel promises: causal from the end of the keys, ``left`` keys back."""
    out = []
    for a, b, c, d in zip(plan.query_starts, plan.query_starts[1:], plan.key_starts, plan.key_starts[1:], strict=False):
        n, m = int(b - a), int(d - c)
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        out.append(
            F.scaled_dot_product_attention(
                *(t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d])),
                attn_mask=seen,
                scale=scaling,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )
        assert n <= plan.longest_query
        assert m <= plan.longest_key
    return torch.cat(out)


def run(route, window: int | None, softcap: float | None, key_heads: int = KEY_HEADS) -> None:
    q, k, v = states(key_heads=key_heads)
    expected = brute_force(q, k, v, window, 0.3, softcap)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    out = route(q, k, v, Layout(LAYOUT), window, 0.3, softcap, 0.0).transpose(1, 2)
    assert (out - expected).abs().max() <= 1e-5
    for ours, other in zip(torch.autograd.grad((out * weights).sum(), (q, k, v)), theirs, strict=True):
        assert (ours - other).abs().max() <= 1e-5


@pytest.mark.parametrize("small", [0, 9, 128])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_segments_on_cpu_equal_brute_force(monkeypatch, window, softcap, key_heads, small):
    """Each block alone, some together, all together."""
    monkeypatch.setattr(attention, "SMALL", small)
    run(attention._by_segment, window, softcap, key_heads)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_segments_result_does_not_depend_on_the_rest_of_the_row(softcap):
    q, k, v = (t.detach() for t in states())
    whole = attention._by_segment(q, k, v, Layout(LAYOUT), None, 0.3, softcap, 0.0)
    pair = [t[:, :, :21] for t in (q, k, v)]
    assert torch.equal(attention._by_segment(*pair, Layout(LAYOUT[:3]), None, 0.3, softcap, 0.0), whole[:, :, :21])


@pytest.mark.parametrize("window", WINDOWS)
def test_gathered_keys_for_the_variable_length_kernel_equal_brute_force(monkeypatch, window):
    monkeypatch.setattr(attention, "_flash_kernel", lambda capped: flash_stand_in)
    run(attention._varlen, window, None)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
def test_flex_mask_equals_brute_force(window, softcap):
    """Forward alone: FlexAttention has no backward on CPU."""
    q, k, v = (t.detach() for t in states())
    out = attention._flex(q, k, v, Layout(LAYOUT), window, 0.3, softcap, 0.0).transpose(1, 2)
    assert (out - brute_force(q, k, v, window, 0.3, softcap)).abs().max() <= 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.bfloat16, None), (torch.bfloat16, 2.0), (torch.float32, None)])
@pytest.mark.parametrize("window", WINDOWS)
def test_gpu_routes_equal_the_segments_on_cpu(dtype, softcap, window):
    on_cpu = states()
    on_gpu = [t.detach().to("cuda", dtype).requires_grad_() for t in on_cpu]
    expected = attention._by_segment(*on_cpu, Layout(LAYOUT), window, 0.3, softcap, 0.0)
    found = attention._gpu_route(dtype, softcap)(*on_gpu, Layout(LAYOUT), window, 0.3, softcap, 0.0)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    assert (found.float().cpu() - expected).abs().max() <= tolerance
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad((expected * weights).sum(), on_cpu)
    ours = torch.autograd.grad((found.float() * weights.cuda()).sum(), on_gpu)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float().cpu() - b).abs().max() <= tolerance * max(1, b.abs().max())


def test_a_window_shorter_than_the_row_computes_only_what_it_sees():
    """Work is tokens x window: no block of queries meets more than two windows of keys."""
    blocks = [b for s in (Segment(0, 1000, 0, 0), Segment(1000, 1300, 0, 1000)) for b in attention._blocks(s, 64)]
    assert sum(b.stop - b.start for b in blocks) == 1300
    assert max(b.keys for b in blocks) <= 128


def test_derived_masks_are_made_once_for_all_layers():
    q, k, v = states()
    layout = Layout(LAYOUT)
    attention._by_segment(q, k, v, layout, 3, 0.3, None, 0.0)
    made = {name: id(value) for name, value in layout.cache.items()}
    attention._by_segment(q, k, v, layout, 3, 0.3, None, 0.0)
    assert {name: id(value) for name, value in layout.cache.items()} == made


def test_attention_sinks_and_a_missing_layout_are_refused():
    q, k, v = states()
    with pytest.raises(UserError, match="s_aux"):
        attention.segment_attention(torch.nn.Module(), q, k, v, None, segment_layout=Layout(LAYOUT), s_aux=q)
    with pytest.raises(UserError, match="segment_layout"):
        attention.segment_attention(torch.nn.Module(), q, k, v, None)
