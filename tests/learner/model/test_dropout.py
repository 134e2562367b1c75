"""Training is without the dropout of the starting model, so that policy and reference begin as the same function."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from contracts.pair import PreferencePair, as_token_ids
from learner.config import LoraConfig, ModelConfig, ObjectiveConfig
from learner.loss.objectives import Scores, resolve_objective
from learner.model.dropout import dropout_of
from learner.model.forward import causal_model, score
from learner.model.loading import load_model
from learner.model.packing import Mode, pack
from learner.zero.export import configuration_files, save_model, saved_metadata
from learner.zero.weights import named_weights
from support.checkpoints import copy_of

PAIR = PreferencePair(as_token_ids([1, 5]), as_token_ids([6, 7, 8, 2]), 1, 3, as_token_ids([9, 4]), suffix_kept=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With dropout of 10 % on embeddings, attention and residuals, as its configuration has by default."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(copy_of(tiny_llama, tmp_path_factory.mktemp("llama") / "m", attention_dropout=0.3))


def first_loss(config: ModelConfig, mode: Mode) -> float:
    """DPO's at the first step: the policy in training, the reference the same model in evaluation."""
    model = load_model(config, 0)
    (batch,) = pack([PAIR], 64, mode)
    with torch.no_grad():
        policy = score(model, batch, 64)
        reference = score(model.eval(), batch, 64)
    objective = resolve_objective(ObjectiveConfig(name="dpo", beta=1.0))
    loss, _ = objective.fn(Scores(policy, batch.counts, reference))
    return float(loss)


@pytest.mark.parametrize("mode", ["shared", "padded"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_first_loss_is_ln_2_whatever_dropout_the_start_has(
    request: pytest.FixtureRequest, name: str, mode: Mode
) -> None:
    path = request.getfixturevalue(name)
    assert first_loss(ModelConfig(path=path, dtype="float32"), mode) == pytest.approx(math.log(2), abs=1e-6)
    kept = ModelConfig(path=path, dtype="float32", disable_dropout=False)
    assert abs(first_loss(kept, mode) - math.log(2)) > 1e-4


def test_what_is_exported_keeps_the_dropout_of_the_start(gpt2: str, tmp_path: Path) -> None:
    model = causal_model(load_model(ModelConfig(path=gpt2, dtype="float32"), 0))
    assert dropout_of(model.config) == {}
    for folder in (tmp_path / "policy", tmp_path / "ema"):
        save_model(folder, configuration_files(model, (2,)), saved_metadata(model), named_weights(model, 0))
        written = json.loads((folder / "config.json").read_text())
        assert {written[name] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")} == {0.1}
        assert dropout_of(model.config) == {}, "training goes on without it"


def test_dropout_of_adapters_is_their_own(gpt2: str) -> None:
    adapted = load_model(ModelConfig(path=gpt2, dtype="float32", lora=LoraConfig(dropout=0.2)), 0)
    rates = {m.p for m in adapted.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.0, 0.2}


def test_only_what_makes_a_forward_random_counts() -> None:
    config = PreTrainedConfig()
    for name, value in {
        "attention_dropout": 0.1,
        "router_jitter_noise": 0.01,
        "layerdrop": 1,
        "hidden_dropout": 0.0,
        "classifier_dropout": 0.3,
        "use_dropout": True,
        "dropout_kind": "even",
        "embd_pdrop": None,
    }.items():
        setattr(config, name, value)
    assert dropout_of(config) == {"attention_dropout": 0.1, "layerdrop": 1.0, "router_jitter_noise": 0.01}
    assert np.isclose(sum(dropout_of(config).values()), 1.11)
