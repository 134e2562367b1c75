"""What is published and exported has the names, shapes and values of a saved checkpoint; adapters are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig
from learner.model.checkpoint_names import validate_layerwise
from learner.model.loading import load_model
from learner.zero.weights import metadata, named_layers, named_weights, validate_publishable
from support.architectures import ALL, build


def saved(folder: Path) -> dict[str, Tensor]:
    return {name: w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}


@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
@pytest.mark.parametrize("architecture", ALL)
def test_published_weights_are_those_that_transformers_saves(architecture, loaded, tmp_path):
    model: Any = build(architecture)
    model.save_pretrained(tmp_path)
    if loaded:
        model = load_model(ModelConfig(path=str(tmp_path), dtype="float32"), 0)
    checkpoint, published = saved(tmp_path), list(named_weights(model, 0))
    assert {name: tuple(w.shape) for name, w in checkpoint.items()} == {
        name: shape for name, _, shape in metadata(model)
    }
    assert [(name, w.dtype, tuple(w.shape)) for name, w in published] == metadata(model)
    for name, weight in published:
        assert torch.equal(weight, checkpoint[name]), name
    validate_publishable(model)


def test_the_parts_of_a_layer_keep_the_modules_order():
    """Direct load takes query, key and value as one piece of memory where they lie side by side."""
    model = build("qwen2_moe")
    names = [name.rpartition(".")[2] for name, _ in model.model.layers[0].self_attn.named_modules()]
    (layer,) = [layer for layer in named_layers(model, 0) if layer[0][0].startswith("model.layers.0.")]
    ours = [name.split(".")[4] for name, _ in layer if name.endswith("proj.weight") and "self_attn" in name]
    assert ours == [name for name in names if name.endswith("proj")]


def test_a_weight_that_is_made_of_several_layers_is_rejected():
    model = build("mixtral")
    whole = [(name, torch.empty_like(p, device="meta")) for name, p in model.named_parameters()]
    validate_layerwise(model, [whole])
    model._weight_conversions = [fusing_across_layers()]
    halves = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    with pytest.raises(UserError, match=r"MixtralForCausalLM can't be published: .* several layers"):
        validate_layerwise(model, halves)


def fusing_across_layers() -> Any:
    """A conversion of a checkpoint that holds the norms of all layers as one weight."""
    from transformers.core_model_loading import SplitModulelist, WeightConverter

    return WeightConverter("norms", "model.layers.*.input_layernorm.weight", [SplitModulelist(dim=0)])


def adapted(folder: Path, architecture: str, targets: Any) -> Any:
    """The model with random adapters, none of them zero."""
    build(architecture).save_pretrained(folder)
    lora = LoraConfig(rank=4, alpha=12.0, target_modules=targets)
    model = load_model(ModelConfig(path=str(folder), dtype="float32", lora=lora), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(3, 128, (2, 40), generator=torch.Generator().manual_seed(2))
    found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", "all-linear"),
        ("llama_tied", "all-linear"),
        ("llama", ("lm_head", "q_proj")),
        ("llama", ("embed_tokens",)),
        ("gpt2", "all-linear"),
        ("gpt2", ("c_attn", "c_proj")),
        ("mixtral", "all-linear"),
        ("qwen3_moe", "all-linear"),
        ("gpt_oss", "all-linear"),
    ],
)
def test_merged_adapters_compute_what_the_adapters_do(architecture, targets, tmp_path):
    from transformers import AutoModelForCausalLM

    model = adapted(tmp_path, architecture, targets)
    published = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in named_weights(model, 0)}
    assert published.keys() == saved(tmp_path).keys()
    save_file(published, tmp_path / "model.safetensors", metadata={"format": "pt"})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with_adapters = logits(model)
    with model.disable_adapter():
        assert (with_adapters - logits(model)).abs().max() > 0.5
    assert (with_adapters - logits(merged)).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("architecture", "targets", "named"),
    [
        ("llama_tied", ("lm_head",), "lm_head is tied to model.embed_tokens"),
        ("llama_tied", ("embed_tokens",), "model.embed_tokens is tied to lm_head"),
        ("llama_tied", ("embed_tokens", "lm_head"), "is tied to"),
        ("gpt2", ("wte",), "transformer.wte is tied to lm_head"),
    ],
)
def test_an_adapter_on_one_use_of_a_tied_weight_is_rejected(architecture, targets, named, tmp_path):
    with pytest.raises(UserError, match=named) as rejected:
        adapted(tmp_path, architecture, targets)
    assert "\n" not in str(rejected.value)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"use_dora": True}, "q_proj has DoraLinearVariant"),
        ({"lora_bias": True}, "q_proj has a bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head is trained whole"),
    ],
)
def test_adapters_that_are_more_than_a_low_rank_update_are_rejected(extra, named):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    from learner.model.adapters import validate_mergeable

    model = get_peft_model(
        build("qwen2" if "lora_bias" in extra else "llama"), PeftConfig(target_modules=["q_proj"], **extra)
    )
    with pytest.raises(UserError, match=named):
        validate_mergeable(model)
