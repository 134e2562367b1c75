"""Log-probabilities of tokens from their logits, with a backward pass that holds little beside the logits.

Autograd's own backward of a gather and a log-sum-exp makes five tensors of the logits' size in fp32, which for a chunk
of 1,024 tokens and a vocabulary of 128 k words are 2.6 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 [tokens]: log-probability in nats of ``targets``, int64 [tokens], under ``logits`` [tokens, vocabulary]
    of any float dtype; computed in fp32."""
    logps: Tensor = _TokenLogps.apply(logits, targets)
    return logps


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logps, normalizer = _on(logits.device.type, _logps)(logits, targets)
        ctx.save_for_backward(logits, targets, normalizer)
        result: Tensor = logps
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalizer = ctx.saved_tensors
        kernel = _on("cuda", _fused_gradient) if logits.is_cuda else _gradient
        return kernel(logits, targets, normalizer, grad), None


def _logps(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and the log of the softmax's denominator, both float32 [tokens]."""
    values = logits.float()
    normalizer = torch.logsumexp(values, dim=-1)
    return values.gather(-1, targets[:, None])[:, 0] - normalizer, normalizer


def _gradient(logits: Tensor, targets: Tensor, normalizer: Tensor, grad: Tensor) -> Tensor:
    """Of the logits, in one fp32 tensor: bit for bit what autograd makes in five."""
    result = (logits.float() - normalizer[:, None]).exp_().mul_(-grad[:, None])
    return result.scatter_add_(-1, targets[:, None], grad[:, None]).to(logits.dtype)


def _fused_gradient(logits: Tensor, targets: Tensor, normalizer: Tensor, grad: Tensor) -> Tensor:
    """The same as one kernel: it reads logits and writes gradients in their dtype, with nothing in between."""
    is_target = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    probability = (logits.float() - normalizer[:, None]).exp()
    return (grad[:, None] * (is_target.float() - probability)).to(logits.dtype)


@lru_cache
def _on(device_type: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on GPU, where each operation by itself would write its whole result to memory."""
    return torch.compile(function, dynamic=True) if device_type == "cuda" else function
