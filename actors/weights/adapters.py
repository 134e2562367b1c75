"""Published LoRA adapters: an engine applies them to the weights that it was started with.

vLLM's own manager shards them among tensor parallel workers and fuses those of fused layers. What it has no layer for
it leaves out without a word, so that is asked afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from actors.weights.acceptance import REFUSALS, Acceptance
from contracts.errors import first_line

ADAPTERS = 1
"""vLLM's number of the adapters that are published; there are no others."""


def takes_adapters(model: nn.Module) -> bool:
    """Whether adapters alone are published to this model of vLLM's; else whole weights are."""
    return hasattr(model, "lora_manager")


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> Acceptance:
    """Use these adapters from the next forward on, in place of those before.

    Args:
        tensors: under peft's names; [rank, in] and [out, rank] of each adapted layer, B times its scale. vLLM keeps
            them, and may change them.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager: Any = model.lora_manager
    acceptance = Acceptance(type(model).__name__, adapters=True)
    renames = getattr(model, "hf_to_vllm_mapper", None)
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("A.weight"))
    try:
        adapters = LoRAModel.from_lora_tensors(
            ADAPTERS,
            dict(tensors),
            PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=renames.get_rename_mapper() if renames else None,
        )
        manager.remove_adapter(ADAPTERS)
        manager.add_adapter(adapters)
        manager.activate_adapter(ADAPTERS)
    except REFUSALS as error:
        acceptance.refusal = f"{type(error).__name__}: {first_line(error)}"
        return acceptance
    acceptance.passed_over = sorted(adapters.loras.keys() - manager.modules.keys())
    return acceptance
