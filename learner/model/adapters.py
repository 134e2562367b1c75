"""LoRA adapters: the weights that they are merged into, and which of them can't be merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import UserError

PEFT_PREFIX = "base_model.model."


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """The name that a weight has in the model without adapters."""
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer", "")


def adapters_by_weight(module: nn.Module) -> dict[str, list[Any]]:
    """Name of each adapted weight of ``module`` -> the adapter layers that change it."""
    if not hasattr(module, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, list[Any]] = defaultdict(list)
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            found[names[id(_weight_under(layer))]].append(layer)
    return dict(found)


def published_name(name: str) -> str:
    """The name under which peft saves a parameter of an adapter, which is that of engines too."""
    return name.replace(".default", "")


def scales(module: nn.Module) -> dict[str, float]:
    """Name of each adapter's second factor B -> what B A is multiplied by, alpha / rank."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}.lora_B.{adapter}.weight": layer.scaling[adapter]
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
        for adapter in layer.active_adapters
    }


def adapted_layers(module: nn.Module) -> tuple[str, ...]:
    """Last parts of the names of the layers that have adapters, each once."""
    from peft.tuners.lora import LoraLayer

    names = (name for name, layer in module.named_modules() if isinstance(layer, LoraLayer))
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def validate_applicable(module: nn.Module) -> None:
    """Engines that get adapters alone apply them to the linear layers of the blocks.

    Raises:
        UserError: an adapter is on anything else.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import Linear

    adapted: Any = module
    head = adapted.get_base_model().get_output_embeddings()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer) and (type(layer) is not Linear or layer is head):
            raise UserError(
                f"model.lora.target_modules: engines apply adapters to the linear layers of the blocks alone, and "
                f"{base_name(name)} is none; set weights.lora=merged to publish merged weights"
            )


def embedding_adapters(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """(adapter layer, parameter of its adapters) of every adapted embedding."""
    for layer in module.modules():
        for adapters in (getattr(layer, "lora_embedding_A", None), getattr(layer, "lora_embedding_B", None)):
            if adapters is not None:
                yield from ((layer, parameter) for parameter in adapters.parameters())


@torch.no_grad()
def merged(weight: Tensor, layers: Iterable[Any]) -> Tensor:
    """The weight with its adapters in it, summed in fp32 and rounded once.

    peft says what an adapter adds: it knows transposed weights (GPT-2's Conv1D), embeddings and stacked experts.
    """
    whole = weight.float()
    for layer in layers:
        for adapter in layer.active_adapters:
            whole = whole + layer.get_delta_weight(adapter).float()
    return whole.to(weight.dtype)


def validate_mergeable(module: nn.Module) -> None:
    """Engines and exports get merged weights, so every adapter must be one that can be merged exactly.

    Raises:
        UserError: an adapter changes one of two uses of a tied weight, or more than a weight's low-rank update.
    """
    from peft.tuners.lora.layer import Embedding, Linear, ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    uses: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        uses[id(parameter)].append(base_name(name))
    for name, layer in module.named_modules():
        where = base_name(name)
        if isinstance(layer, AuxiliaryTrainingWrapper):
            raise UserError(f"model.lora: {where} is trained whole beside the adapters, which can't be merged")
        if not isinstance(layer, BaseTunerLayer):
            continue
        # Subclasses are quantized layers, of which there is no weight to merge into.
        if type(layer) not in (Linear, Embedding, ParamWrapper):
            raise UserError(
                f"model.lora.target_modules: the adapter of {where} ({type(layer).__name__}) can't be merged; leave it "
                "out"
            )
        _validate_plain(where, layer)
        _validate_own_weight(where, uses[id(_weight_under(layer))])


def _validate_plain(where: str, layer: Any) -> None:
    if layer.lora_variant or any(layer.lora_bias.values()):
        kind = ", ".join(type(v).__name__ for v in layer.lora_variant.values()) or "a bias"
        raise UserError(f"model.lora: the adapter of {where} has {kind}, which can't be merged; plain LoRA can")


def _validate_own_weight(where: str, names: Sequence[str]) -> None:
    others = [name.rpartition(".")[0] for name in names if name.rpartition(".")[0] != where]
    if len(names) > 1:
        raise UserError(
            f"model.lora.target_modules: {where} is tied to {' and '.join(others)}: merged, its adapter would change "
            "both; leave it out"
        )


def _weight_under(layer: Any) -> Tensor:
    """The weight that an adapter layer changes."""
    weight: Tensor = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return weight
