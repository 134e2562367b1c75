"""The shape of a model from its config.json: transformers builds it without memory for weights, and it is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from cluster.data.locations import reject_absent
from contracts.errors import UserError, first_line
from learner.config import LoraConfig, ModelConfig


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on."""

    parameters: int
    """All, a tied head counted once."""
    active: int
    """Those that one token is multiplied with: without the input embedding and without experts that it skips."""
    trainable: int
    """Those that get gradients: all, or the adapters'."""
    largest: int
    """Of the largest single weight, which ZeRO 3 gathers whole."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward part, of all experts that a token uses."""
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int


def read_shape(config: ModelConfig) -> ModelShape:
    """Shape of the model that a run trains. Reads config.json alone, from a folder or the hub.

    Raises:
        UserError: there is no such config, or transformers knows no causal language model of its kind.
    """
    reject_absent(config.path, "model.path")
    try:
        architecture = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.path {config.path}: its config.json can't be read: {first_line(error)}; set model.path=FOLDER "
            "to a folder that holds one"
        ) from error
    return shape_of(model, architecture.get_text_config(), config.lora)


def shape_of(model: nn.Module, config: PreTrainedConfig, lora: LoraConfig | None) -> ModelShape:
    """Counts a model, which may lie on the meta device."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    parameters = sum(sizes.values())
    used = int(getattr(config, "num_experts_per_tok", None) or 1)
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts") or used
    in_experts = sum(size for name, size in sizes.items() if ".experts." in name)
    transformer: Any = model
    embedding: nn.Embedding = transformer.get_input_embeddings()
    tied = bool(getattr(config, "tie_word_embeddings", False))
    # A tied embedding is multiplied with as the head.
    skipped = 0 if tied else embedding.weight.numel()
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    width = _first(config, "moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    return ModelShape(
        parameters=parameters,
        active=parameters - skipped - in_experts + in_experts * used // experts,
        trainable=adapter_parameters(model, lora) if lora else parameters,
        largest=max(sizes.values()),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=width * (used if experts > used else 1),
        heads=heads,
        kv_heads=_first(config, "num_key_value_heads") or heads,
        head_size=_first(config, "head_dim") or hidden // heads,
        vocabulary=embedding.num_embeddings,
    )


def adapter_parameters(model: nn.Module, lora: LoraConfig) -> int:
    """Of adapters on linear layers: rank × (in + out) each. As in peft, ``all-linear`` leaves the head out."""
    transformer: Any = model
    head = transformer.get_output_embeddings()
    wanted = lora.target_modules
    return sum(
        lora.rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is not head if wanted == "all-linear" else name.rpartition(".")[2] in wanted)
    )


def _first(config: PreTrainedConfig, *names: str) -> int:
    """The first of these fields that says something; 0 where none does."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)
