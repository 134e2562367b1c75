"""What is loaded, and that what can't be is rejected in one line that names the path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig
from learner.model.forward import causal_model
from learner.model.loading import load_model, validate_length


def test_random_weights_are_those_of_the_seed(tiny_llama):
    config = ModelConfig(path=tiny_llama, dtype="float32", from_scratch=True)
    first, second, other = (load_model(config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("from_scratch", [False, True])
def test_bf16_leaves_rotary_frequencies_in_fp32(from_scratch, tiny_llama):
    model = load_model(ModelConfig(path=tiny_llama, dtype="bfloat16", from_scratch=from_scratch), 0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert causal_model(model).model.rotary_emb.inv_freq.dtype == torch.float32


def broken(source: str, target: Path, **changes: object) -> str:
    """A copy of a model folder with other values in its config."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


def rejection(config: ModelConfig) -> str:
    with pytest.raises(UserError) as rejected:
        load_model(config, 0)
    message = str(rejected.value)
    assert config.path in message
    assert "\n" not in message
    return message


def test_rejections_name_the_path_and_the_cause(tiny_llama, tmp_path):
    assert "not loadable" in rejection(ModelConfig(path=str(tmp_path / "nowhere")))
    assert "t5" in rejection(ModelConfig(path=broken(tiny_llama, tmp_path / "t5", model_type="t5"))).lower()
    assert "not loadable" in rejection(ModelConfig(path=broken(tiny_llama, tmp_path / "wide", vocab_size=300)))
    deeper = rejection(ModelConfig(path=broken(tiny_llama, tmp_path / "deep", num_hidden_layers=3)))
    assert "lacks 9 weights" in deeper
    assert "model.layers.2" in deeper
    cut = broken(tiny_llama, tmp_path / "cut")
    weights = Path(cut) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not loadable" in rejection(ModelConfig(path=cut))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tiny_llama, tmp_path, value):
    damaged = broken(tiny_llama, tmp_path / "damaged")
    weights = load_file(Path(damaged) / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, Path(damaged) / "model.safetensors", {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight has values that are NaN" in rejection(ModelConfig(path=damaged))


def test_adapters_on_layers_that_the_model_lacks_are_rejected(tiny_llama):
    with pytest.raises(UserError, match=r"target_modules .*query"):
        load_model(ModelConfig(path=tiny_llama, lora=LoraConfig(target_modules=("query",))), 0)


def test_sequences_longer_than_the_positions_are_rejected(tiny_llama):
    config = causal_model(load_model(ModelConfig(path=tiny_llama), 0)).config
    validate_length(tiny_llama, config, 1024)
    with pytest.raises(UserError, match=r"data.max_length 1025: .* max_position_embeddings 1024"):
        validate_length(tiny_llama, config, 1025)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_enlarged_around_their_mean_and_the_same_on_every_rank(tied, tiny_llama, tiny_llama_tied):
    path = tiny_llama_tied if tied else tiny_llama
    config = ModelConfig(path=path, dtype="float32")
    old, new, again = (causal_model(load_model(config, 3, size)) for size in (0, 130, 130))
    assert new.config.vocab_size == 192, "in whole blocks of 64"
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) == tied
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, layer)().weight, getattr(new, layer)().weight
        assert after.shape == (192, 64)
        assert torch.equal(after[:128], before)
        assert torch.equal(after, getattr(again, layer)().weight)
        spread = (after[128:] - before.mean(0)) / before.std(0)
        assert 0.005 < spread.std() < 0.015
        assert spread.abs().max() < 0.06
    assert all(torch.equal(p, q) for (n, p), q in zip(new.named_parameters(), again.parameters(), strict=True))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(new(ids).logits[..., :128], old(ids).logits, atol=1e-6)


def test_an_embedding_that_is_large_enough_is_kept(tiny_llama):
    for size in (100, 128):
        assert causal_model(load_model(ModelConfig(path=tiny_llama), 0, size)).config.vocab_size == 128
