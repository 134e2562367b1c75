"""The module's weights under their checkpoint names, whole, layer by layer: for publication and export."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, groupby

import torch
from torch import Tensor, nn

from learner.model.adapters import adapters_by_weight, base_name, is_adapter, merged, published_name, scales
from learner.model.checkpoint_names import NamedTensors, to_checkpoint, validate_layerwise
from learner.model.forward import causal_model
from learner.zero.shards import gathered

WeightMetadata = tuple[str, torch.dtype, tuple[int, ...]]
"""(name, dtype, shape) of one weight."""


def metadata(module: nn.Module) -> list[WeightMetadata]:
    """What ``named_layers`` yields, without gathering anything."""
    model = causal_model(module)
    return [
        (name, tensor.dtype, tuple(tensor.shape))
        for layer in _shapes(module)
        for name, tensor in to_checkpoint(model, layer)
    ]


def validate_publishable(module: nn.Module) -> None:
    """Raises:
    UserError: the module's weights can't be brought to their checkpoint names layer by layer.
    """
    validate_layerwise(causal_model(module), list(_shapes(module)))


def named_layers(module: nn.Module, zero_stage: int) -> Iterator[NamedTensors]:
    """(checkpoint name, whole tensor) of every weight, tied ones once, adapters merged, layer by layer.

    A collective under ZeRO 3: all ranks iterate to the end. A layer is valid until the next one is asked for; never
    more than one is gathered at a time.
    """
    model, adapters = causal_model(module), adapters_by_weight(module)
    for layer in _layers(module):
        with gathered([tensor for _, tensor in layer if isinstance(tensor, nn.Parameter)], zero_stage):
            whole = [
                (base_name(name), merged(tensor.data, adapters[name]) if name in adapters else tensor.data)
                for name, tensor in layer
                if not is_adapter(name)
            ]
            yield to_checkpoint(model, whole)


def adapter_metadata(module: nn.Module) -> list[WeightMetadata]:
    """What ``adapter_layers`` yields, without gathering anything."""
    return [
        (published_name(name), tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
        for layer in _layers(module)
        for name, tensor in layer
        if is_adapter(name)
    ]


def adapter_layers(module: nn.Module, zero_stage: int) -> Iterator[NamedTensors]:
    """(peft's name, whole tensor) of every factor of an adapter, B times its scale, layer by layer.

    A collective under ZeRO 3, as ``named_layers``.
    """
    scale_of = scales(module)
    for layer in _layers(module):
        own = [(name, tensor) for name, tensor in layer if is_adapter(name)]
        with gathered([tensor for _, tensor in own if isinstance(tensor, nn.Parameter)], zero_stage):
            yield [(published_name(name), tensor.data * scale_of.get(name, 1.0)) for name, tensor in own]


def named_weights(module: nn.Module, zero_stage: int) -> Iterator[tuple[str, Tensor]]:
    """``named_layers``, one weight after the other."""
    return chain.from_iterable(named_layers(module, zero_stage))


def _layers(module: nn.Module) -> Iterator[NamedTensors]:
    """What a checkpoint holds, by its names in ``module``, tied weights once: parameters and some models' buffers
    (the biases that balance DeepSeek-V3's experts)."""
    seen: set[int] = set()
    once: NamedTensors = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            once.append((name, tensor))
    for _, members in groupby(once, key=lambda item: _layer_of(item[0])):
        yield list(members)


def _shapes(module: nn.Module) -> Iterator[NamedTensors]:
    """``_layers`` without adapters, under the model's own names, on torch's meta device."""
    for layer in _layers(module):
        yield [
            (base_name(name), torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta"))
            for name, tensor in layer
            if not is_adapter(name)
        ]


def _layer_of(name: str) -> str:
    """Everything up to the first number: model.layers.3.mlp.up.weight is of layer model.layers.3. Else the module, so
    that an adapted head comes with its adapters."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() or part == "base_layer" or part.startswith("lora_"):
            return ".".join(parts[: i + part.isdigit()])
    return name
