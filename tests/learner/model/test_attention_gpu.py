"""The GPU's routes give what attention computed query by query gives: on CPU with stand-ins, on a GPU themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from contracts.pair import PreferencePair
from learner.model import attention_gpu
from learner.model.attention_cpu import attend_by_segment
from learner.model.attention_gpu import attend_flex, attend_gathered
from learner.model.packing import RowLayout, pack
from support.row_attention import SEGMENTS, WINDOWS, brute_force, check_against_brute_force, states


def flash_stand_in(
    q: Tensor, k: Tensor, v: Tensor, plan: Any, left: int, scaling: float, softcap: float | None, dropout: float
) -> Tensor:
    """What FlashAttention's variable-length kernel promises: causal from the end of the keys, ``left`` keys back."""
    out = []
    for a, b, c, d in zip(plan.query_starts, plan.query_starts[1:], plan.key_starts, plan.key_starts[1:], strict=False):
        n, m = int(b - a), int(d - c)
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        query, key, value = (t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d]))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)
        out.append(attended[0].transpose(0, 1))
        assert n <= plan.longest_query
        assert m <= plan.longest_key
    return torch.cat(out)


@pytest.mark.parametrize("window", WINDOWS)
def test_gathered_keys_for_the_variable_length_kernel_equal_brute_force(monkeypatch, window):
    monkeypatch.setattr(attention_gpu, "_flash_kernel", lambda capped: flash_stand_in)
    check_against_brute_force(attend_gathered, window, None)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
def test_flex_mask_equals_brute_force(window, softcap):
    """Forward alone: FlexAttention has no backward on CPU."""
    q, k, v = (t.detach() for t in states())
    out = attend_flex(q, k, v, RowLayout(SEGMENTS), window, 0.3, softcap, 0.0).transpose(1, 2)
    assert (out - brute_force(q, k, v, window, 0.3, softcap)).abs().max() <= 1e-5


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("window", [None, 1, 130, 700])
@pytest.mark.parametrize("mode", ["shared", "packed"])
def test_flex_blocks_are_those_that_torch_counts_in_a_whole_mask(mode, window):
    draw = np.random.default_rng(0)
    for _ in range(3):
        lengths = draw.integers(1, [200, 150, 100, 100, 200], (3, 5))
        (batch,) = pack([pair_of(draw, *of_pair) for of_pair in lengths], 1 << 30, mode)
        with LargestTensor() as largest:
            ours = attention_gpu._block_mask(batch.layout, window, torch.device("cpu"))
        assert largest.elements <= 8 * batch.tokens
        theirs = create_block_mask(ours.mask_mod, None, None, batch.tokens, batch.tokens, device="cpu")
        assert ours.shape == theirs.shape
        for one, other in zip(ours.as_tuple(flatten=True)[:-1], theirs.as_tuple(flatten=True)[:-1], strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def pair_of(draw: np.random.Generator, prompt: int, a: int, b: int, replacement: int, c: int) -> PreferencePair:
    tokens = [draw.integers(3, 99, n).astype(np.int32) for n in (prompt, a + b + c, replacement)]
    return PreferencePair(tokens[0], tokens[1], a, a + b, tokens[2], suffix_kept=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.bfloat16, None), (torch.bfloat16, 2.0), (torch.float32, None)])
@pytest.mark.parametrize("window", WINDOWS)
def test_gpu_routes_equal_the_segments_on_cpu(dtype, softcap, window):
    q, k, v = on_cpu = states()
    on_gpu = [t.detach().to("cuda", dtype).requires_grad_() for t in on_cpu]
    expected = attend_by_segment(q, k, v, RowLayout(SEGMENTS), window, 0.3, softcap, 0.0)
    attend = attention_gpu.kernel_for(dtype, softcap)
    found = attend(*on_gpu, RowLayout(SEGMENTS), window, 0.3, softcap, 0.0)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    assert (found.float().cpu() - expected).abs().max() <= tolerance
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad((expected * weights).sum(), on_cpu)
    ours = torch.autograd.grad((found.float() * weights.cuda()).sum(), on_gpu)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float().cpu() - b).abs().max() <= tolerance * max(1, b.abs().max())
