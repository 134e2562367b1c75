"""Values and gradients of log-probabilities are log_softmax's; the backward holds one tensor beside the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.model.token_logps import _fused_gradient, _gradient, _logps, token_logps


def example(dtype: torch.dtype, tokens: int = 40, vocabulary: int = 513) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(tokens, vocabulary, generator=draw)).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=draw)
    return logits, targets, torch.randn(tokens, generator=draw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_log_softmax(dtype):
    logits, targets, weight = example(dtype)
    ours = token_logps(logits, targets)
    theirs = logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 2e-6
    (found,) = torch.autograd.grad(ours, logits, weight)
    (expected,) = torch.autograd.grad(theirs, logits, weight.double())
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_bit_for_bit_what_autograd_makes(dtype):
    logits, targets, weight = example(dtype)
    values = logits.float()
    plain = values.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(values, dim=-1)
    ours = token_logps(logits, targets)
    assert torch.equal(ours, plain)
    assert torch.equal(*(torch.autograd.grad(logps, logits, weight)[0] for logps in (ours, plain)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpus_gradient_is_the_same(dtype):
    logits, targets, weight = example(dtype)
    with torch.no_grad():
        normalizer = _logps(logits, targets)[1]
        ours, theirs = (f(logits, targets, normalizer, weight).float() for f in (_fused_gradient, _gradient))
    assert (ours - theirs).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)


class Held(TorchDispatchMode):
    """Notes how many bytes of large new tensors the operators of a block made."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.made, self._least = 0, least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= self._least:
            self.made += result.nbytes * (result.untyped_storage().data_ptr() not in inputs)
        return result


@pytest.mark.parametrize(("dtype", "tensors"), [(torch.float32, 1), (torch.bfloat16, 2.5)])
def test_the_backward_makes_one_fp32_tensor_of_the_logits_size(dtype, tensors):
    """And in 16 bits the values that it was made from (which are gone when it is) and the result."""
    logits, targets, weight = example(dtype)
    logps = token_logps(logits, targets)
    with Held(logits.numel()) as held:
        torch.autograd.grad(logps, logits, weight)
    assert held.made == tensors * 4 * logits.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_gpu_little_is_held_beside_the_logits(dtype):
    logits, targets, weight = (t.detach().cuda() for t in example(dtype, 256, 64_000))
    logits.requires_grad_()
    for _ in range(2):  # the first call compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        logps = token_logps(logits, targets)
        (found,) = torch.autograd.grad(logps, logits, weight)
        held = torch.cuda.max_memory_allocated() - before
    assert held <= 1.1 * logits.nbytes
    plain = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad(plain, logits, weight)
    assert (logps - plain).abs().max() <= 1e-4
    assert (found.float() - expected.float()).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)
