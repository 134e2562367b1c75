"""The module's weights under their checkpoint names, whole, layer by layer: for publication and export."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn

from learner.zero.shards import gathered

WeightMetadata = tuple[str, torch.dtype, tuple[int, ...]]
"""(name, dtype, shape) of one weight."""

PEFT_PREFIX = "base_model.model."


def metadata(module: nn.Module) -> list[WeightMetadata]:
    """What ``named_layers`` yields, without gathering anything."""
    return [
        (checkpoint_name(name), parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
        for name, parameter in module.named_parameters()
        if not is_adapter(name)
    ]


def named_layers(module: nn.Module, zero_stage: int) -> Iterator[list[tuple[str, Tensor]]]:
    """(checkpoint name, whole tensor) of every weight, tied ones once, adapters merged, layer by layer.

    A collective under ZeRO 3: all ranks iterate to the end. A layer is valid until the next one is asked for; never
    more than one is gathered at a time.
    """
    adapters = _adapters(module)
    for _, members in groupby(module.named_parameters(), key=lambda item: _layer_of(item[0])):
        layer = list(members)
        with gathered([parameter for _, parameter in layer], zero_stage):
            yield [
                (checkpoint_name(name), _merged(parameter.data, adapters[name]) if name in adapters else parameter.data)
                for name, parameter in layer
                if not is_adapter(name)
            ]


def named_weights(module: nn.Module, zero_stage: int) -> Iterator[tuple[str, Tensor]]:
    """``named_layers``, one weight after the other."""
    return chain.from_iterable(named_layers(module, zero_stage))


def checkpoint_name(name: str) -> str:
    """The name that the weight has in a Hugging Face checkpoint."""
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def _layer_of(name: str) -> str:
    """Everything up to the first number: model.layers.3.mlp.up.weight is of layer model.layers.3. Else the module, so
    that an adapted head comes with its adapters."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() or part == "base_layer" or part.startswith("lora_"):
            return ".".join(parts[: i + part.isdigit()])
    return name


def _adapters(module: nn.Module) -> dict[str, Any]:
    """Name of each adapted base weight -> its LoRA layer."""
    return {
        f"{name}.base_layer.weight": layer
        for name, layer in module.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")
    }


@torch.no_grad()
def _merged(weight: Tensor, layer: Any) -> Tensor:
    """W + alpha / r * B A, in fp32 and rounded once."""
    merged = weight.float()
    for key in layer.active_adapters:
        delta = layer.lora_B[key].weight.float() @ layer.lora_A[key].weight.float()
        merged = merged + layer.scaling[key] * delta
    return merged.to(weight.dtype)
