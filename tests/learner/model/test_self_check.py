"""The self-check passes a right forward and stops a wrong one with one clear line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor

from contracts.errors import UserError
from contracts.pair import PreferencePair
from learner.model import attention, attention_cpu
from learner.model.packing import RowLayout
from learner.model.self_check import check_forward, choose_pairs, longest_half, tolerance_nats

WINDOW = 7
_TOKEN = np.array([5], np.int32)


def build(dtype: torch.dtype = torch.float32, window: int | None = WINDOW) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.MistralConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
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


CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["shared", "packed", "padded"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_right_forward_passes_and_leaves_the_model_as_it_was(mode, last):
    model = build()
    assert check_forward(model, make_pairs()[:last], mode, 16, CPU) <= 1e-5
    assert model.training
    assert (model.config._attn_implementation == attention.NAME) == (mode != "padded")


def test_rounding_of_bfloat16_passes():
    assert 0 < check_forward(build(torch.bfloat16), make_pairs(), "shared", 16, CPU) < 0.05


@pytest.mark.parametrize("tokens", range(1, 65))
def test_rounding_of_bfloat16_is_within_the_tolerance_however_short_a_region_is(tokens):
    """As measured on SmolLM2: mean 0.052, 99 % 0.23, largest of a thousand 0.40."""
    noise = np.random.default_rng(tokens).exponential(0.052, (50_000, tokens))
    assert np.quantile(noise, 0.99) == pytest.approx(0.23, abs=0.02)
    passed = noise.mean(1) <= tolerance_nats(torch.bfloat16, tokens)
    assert passed.mean() >= 0.999


def test_the_tolerance_narrows_to_that_of_many_tokens():
    allowed = [tolerance_nats(torch.bfloat16, n) for n in (1, 4, 16, 64, 1 << 20)]
    assert allowed == sorted(allowed, reverse=True)
    assert allowed[-1] == pytest.approx(0.08, rel=0.01)


def ignore_window(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.attend_by_segment
    monkeypatch.setattr(
        attention_cpu, "attend_by_segment", lambda q, k, v, layout, window, *rest: right(q, k, v, layout, None, *rest)
    )


def lose_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches see themselves alone."""
    right = attention_cpu.attend_by_segment

    def wrong(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, *rest: Any) -> Tensor:
        alone = tuple(replace(s, shared_start=s.start, shared_stop=s.start) for s in layout.segments)
        return right(q, k, v, RowLayout(alone), *rest)

    monkeypatch.setattr(attention_cpu, "attend_by_segment", wrong)


def see_the_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment sees the row from its start."""
    right = attention_cpu.attend_by_segment

    def wrong(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, *rest: Any) -> Tensor:
        leaking = tuple(replace(s, shared_start=0) for s in layout.segments)
        return right(q, k, v, RowLayout(leaking), *rest)

    monkeypatch.setattr(attention_cpu, "attend_by_segment", wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("break_it", "window"), [(ignore_window, WINDOW), (lose_prefix, WINDOW), (see_the_neighbour, None)]
)
def test_a_forward_that_attends_wrongly_is_stopped(monkeypatch, dtype, break_it, window):
    model = build(dtype, window)
    break_it(monkeypatch)
    with pytest.raises(UserError, match=r"^learner.forward shared: .*mistral are .* nats per token off .* padded$"):
        check_forward(model, make_pairs(), "shared", 16, CPU)
    assert model.training


def test_a_forward_that_gives_nan_is_stopped():
    model = build()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(UserError, match="nan nats"):
        check_forward(model, make_pairs(), "shared", 16, CPU)


def test_the_longest_pair_within_the_limit_is_compared_behind_a_neighbour():
    pairs = make_pairs()
    assert choose_pairs(pairs, 1024) == [pairs[1], pairs[2]]
    assert choose_pairs(pairs, 50) == [pairs[1], pairs[0]]
    assert choose_pairs(pairs[:1], 50) == [pairs[0]]


def test_pairs_over_the_limit_are_cut_around_their_segment():
    pair = make_pairs()[2]  # 20 prompt tokens; 19, 16 and 8 of A, B and C; 13 of B'
    (cut,) = choose_pairs([pair], 24)
    assert len(cut.prompt) == 0 and cut.prefix.tolist() == pair.prefix[-12:].tolist()
    assert cut.segment.tolist() == pair.segment[:6].tolist()
    assert cut.suffix.tolist() == pair.suffix[:6].tolist()
    assert cut.replacement.tolist() == pair.replacement[:6].tolist()
    (cut,) = choose_pairs([pair], 60)
    assert cut.prompt.tolist() == pair.prompt[-11:].tolist() and cut.prefix.tolist() == pair.prefix.tolist()
    assert check_forward(build(), [cut], "shared", 16, CPU) <= 1e-5


def test_no_more_tokens_are_computed_than_the_limit_says():
    rng = np.random.default_rng(0)
    prompt, chosen = (rng.integers(3, 128, n).astype(np.int32) for n in (3000, 2000))
    long = PreferencePair(prompt, chosen, 900, 1000, _TOKEN, True)
    for pair in choose_pairs([long, long], longest_half(build().config)):
        assert len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= 1024


def test_what_is_compared_is_long_enough_to_leave_a_window():
    assert longest_half(tf.MistralConfig(sliding_window=4096)) > 4096
    assert longest_half(tf.LlamaConfig()) == 1024
