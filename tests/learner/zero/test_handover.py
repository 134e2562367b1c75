"""Rank 0 alone loads; the other ranks make the same model without its weights and take over everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import UserError
from learner.config import LoraConfig, ModelConfig
from learner.model.forward import causal_model
from learner.model.loading import load_model
from learner.zero import handover
from learner.zero.weights import metadata, validate_publishable
from support.architectures import ALL, build
from support.rank_group import in_group, sections, start, steps

HOST = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ALL)
def test_a_skeleton_becomes_the_model_that_was_loaded(architecture, dtype, tmp_path):
    build(architecture).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype=dtype)
    loaded, skeleton = load_model(config, 0), load_model(config, 0, values=False)
    assert all(t.is_meta for t in (*skeleton.parameters(), *skeleton.buffers()))
    described = handover._describe(loaded)
    handover._reject_other_weights(described, handover._describe(skeleton))
    handover._materialize(skeleton, described, HOST)
    assert handover._describe(skeleton) == described
    for name, value in handover._named_tensors(loaded):
        dict(handover._named_tensors(skeleton))[name].data.copy_(value)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(skeleton.eval()(ids).logits, loaded.eval()(ids).logits)
    validate_publishable(skeleton)
    assert metadata(skeleton) == metadata(loaded)


def test_a_skeleton_has_the_adapters_and_the_vocabulary_of_the_loaded_model(tiny_llama_tied):
    for vocabulary, lora in ((0, LoraConfig(rank=4, target_modules=("q_proj", "v_proj"))), (130, None)):
        config = ModelConfig(path=tiny_llama_tied, dtype="bfloat16", lora=lora, gradient_checkpointing=True)
        loaded, skeleton = load_model(config, 0, vocabulary), load_model(config, 0, vocabulary, values=False)
        handover._materialize(skeleton, handover._describe(loaded), HOST)
        assert handover._describe(skeleton) == handover._describe(loaded)
        wanted = [name for name, p in loaded.named_parameters() if p.requires_grad]
        assert [name for name, p in skeleton.named_parameters() if p.requires_grad] == wanted
        model = causal_model(skeleton)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_other_weights_than_the_config_has_are_rejected_by_name(tiny_llama):
    described = handover._describe(load_model(ModelConfig(path=tiny_llama), 0))
    with pytest.raises(UserError, match=r"differ, first in lm_head.weight \[128, 64\]"):
        handover._reject_other_weights(described, [entry for entry in described if "lm_head" not in entry[0]])


def take_over(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    from learner.zero.weights import named_weights

    learner = start(rank, world, port, parts)
    facts: dict[str, Any] = {
        "weights": {n: w.detach().clone() for n, w in named_weights(learner.module, learner.zero_stage)},
        "buffers": {n: b.clone() for n, b in learner.module.named_buffers()},
        "generator": torch.get_rng_state(),
    }
    steps(learner, 0, 1)
    torch.save(facts, Path(out) / f"{rank}.pt")
    learner.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_all_ranks_start_with_what_rank_0_loaded(stage, tmp_path):
    architecture = {0: "gpt2", 2: "mixtral", 3: "gemma3"}[stage]
    build(architecture).save_pretrained(tmp_path)
    parts = sections(str(tmp_path), learner={"zero_stage": stage}, optimizer={"lr": 1e-5})
    in_group(2, take_over, parts, str(tmp_path))
    loaded = load_model(parts["model"], 0)
    from learner.zero.weights import named_weights

    expected = dict(named_weights(loaded, 0))
    for rank in range(2):
        facts = torch.load(tmp_path / f"{rank}.pt")
        assert facts["weights"].keys() == expected.keys()
        assert all(torch.equal(w, expected[name]) for name, w in facts["weights"].items())
        assert all(torch.equal(b, facts["buffers"][name]) for name, b in loaded.named_buffers())
        assert torch.equal(facts["generator"], torch.get_rng_state())
