"""Which adapters engines can apply when they get these alone."""

from __future__ import annotations

import pytest

from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig
from learner.model.adapters import adapted_layers, validate_applicable
from learner.model.loading import add_adapters
from support.architectures import build


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("all-linear", ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
        (("q_proj", "mlp.down_proj"), ("down_proj", "q_proj")),
    ],
)
def test_layers_with_adapters_are_named_once(targets, layers):
    adapted = add_adapters(build("llama"), ModelConfig(path="m", lora=LoraConfig(target_modules=targets)))
    assert adapted_layers(adapted) == layers
    validate_applicable(adapted)


@pytest.mark.parametrize(
    ("architecture", "targets", "where"),
    [
        ("llama", ("embed_tokens",), "model.embed_tokens"),
        ("llama", ("q_proj", "lm_head"), "lm_head"),
        ("mixtral", "all-linear", "model.layers.0.mlp.gate"),
    ],
)
def test_layers_that_engines_do_not_adapt_are_rejected_with_the_remedy(architecture, targets, where):
    adapted = add_adapters(build(architecture), ModelConfig(path="m", lora=LoraConfig(target_modules=targets)))
    with pytest.raises(UserError, match=f"{where} is none; set weights.lora=merged"):
        validate_applicable(adapted)
