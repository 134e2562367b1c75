"""Rank 0 alone loads the model: what the other ranks take over from it, weight by weight.

DeepSpeed sends the parameters' values itself, one after the other, when it partitions (ZeRO 3) or replicates them. It
sends no buffers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contracts.errors import UserError

Description = list[tuple[str, torch.dtype, tuple[int, ...]]]
"""(name, dtype, shape) of every parameter and buffer, tied ones once."""


def take_from_rank_0(module: nn.Module, device: torch.device, storage: torch.device) -> None:
    """Give ``module`` memory for its parameters, and rank 0's buffers. All ranks together.

    The state of torch's generator is taken over too: drawing what rank 0 has drawn, such as adapters, moved it on.

    Args:
        module: rank 0's has all values; that of another rank is its skeleton on torch's meta device.
        device: of the rank.
        storage: where the parameters' memory is, with anything in it. On the host, memory that nobody writes to takes
            none.

    Raises:
        UserError: rank 0's model has other weights than a model of its config.
    """
    described: list[Description] = [_describe(module)]
    dist.broadcast_object_list(described, src=0, device=device)
    if dist.get_rank():
        _reject_other_weights(described[0], _describe(module))
        _materialize(module, described[0], storage)
    for _, buffer in module.named_buffers():
        _take(buffer, device)
    generator = torch.get_rng_state()
    _take(generator, device)
    torch.set_rng_state(generator)


def _describe(module: nn.Module) -> Description:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in _named_tensors(module)]


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _reject_other_weights(loaded: Description, built: Description) -> None:
    names, own = [(name, shape) for name, _, shape in loaded], [(name, shape) for name, _, shape in built]
    if differing := sorted(set(names) ^ set(own)):
        name, shape = differing[0]
        raise UserError(f"model.path: its checkpoint and a model of its config differ, first in {name} {list(shape)}")


def _materialize(module: nn.Module, described: Description, storage: torch.device) -> None:
    """Memory for what is on the meta device; what is tied stays tied. dtypes are rank 0's: transformers keeps some
    weights in fp32 when it loads a checkpoint."""
    dtypes = {name: dtype for name, dtype, _ in described}
    fresh: dict[int, Any] = {}
    for name, old in _named_tensors(module):
        tensor = torch.empty(old.shape, dtype=dtypes[name], device=storage)
        fresh[id(old)] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = fresh.get(id(parameter))
        for name, buffer in part._buffers.items():
            part._buffers[name] = fresh.get(id(buffer))


def _take(tensor: Tensor, device: torch.device) -> None:
    """Rank 0's values."""
    values = tensor.to(device).contiguous()
    dist.broadcast(values, src=0)
    if dist.get_rank():  # rank 0's may be a view that can't be written to
        tensor.copy_(values)
