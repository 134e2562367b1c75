"""The self-check passes a right forward and stops a wrong one with one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

from contracts.errors import UserError
from contracts.pair import PreferencePair
from learner.model import attention, attention_cpu
from learner.model.packing import pack
from learner.model.self_check import check_forward

WINDOW = 7


def build(dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.MistralConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        initializer_range=0.15,
        attention_dropout=0.1,
    )
    model = tf.MistralForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model.train()


def make_pairs() -> list[PreferencePair]:
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        return rng.integers(3, 128, n).astype(np.int32)

    shapes = [(11, 16, 5, 4, 7, True), (0, 0, 6, 2, 5, False), (20, 19, 16, 8, 13, True)]
    return [PreferencePair(draw(p), draw(a + b + c), a, a + b, draw(b2), kept) for p, a, b, c, b2, kept in shapes]


@pytest.mark.parametrize("mode", ["shared", "packed", "padded"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_right_forward_passes_and_leaves_the_model_as_it_was(mode, last):
    model, pairs = build(), make_pairs()[:last]
    (batch,) = pack(pairs, 999, mode)
    assert check_forward(model, pairs, batch, mode, chunk=16) <= 1e-5
    assert model.training
    assert (model.config._attn_implementation == attention.NAME) == (mode != "padded")


def test_rounding_of_bfloat16_passes():
    model, pairs = build(torch.bfloat16), make_pairs()
    (batch,) = pack(pairs, 999, "shared")
    assert 0 < check_forward(model, pairs, batch, "shared", chunk=16) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_that_ignores_the_window_is_stopped(monkeypatch, dtype):
    model, pairs = build(dtype), make_pairs()
    right = attention_cpu.attend_by_segment
    monkeypatch.setattr(
        attention_cpu, "attend_by_segment", lambda q, k, v, layout, window, *rest: right(q, k, v, layout, None, *rest)
    )
    (batch,) = pack(pairs, 999, "shared")
    with pytest.raises(UserError, match=r"^learner.forward shared: .*mistral are .* nats per token off .* padded$"):
        check_forward(model, pairs, batch, "shared", chunk=16)
    assert model.training


def test_a_forward_that_gives_nan_is_stopped():
    model, pairs = build(), make_pairs()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    (batch,) = pack(pairs, 999, "shared")
    with pytest.raises(UserError, match="nan nats"):
        check_forward(model, pairs, batch, "shared", chunk=16)
