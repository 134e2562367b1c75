"""Schedules against transformers' own, and what DeepSpeed is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from learner.config import LearnerConfig, ModelConfig, OptimizerConfig
from learner.zero import optim
from learner.zero.optim import deepspeed_config, effective_zero_stage, make_optimizer, schedule, total_steps_note

TOTAL = 60
TRANSFORMERS_NAME = {"constant": "constant_with_warmup"}


@pytest.mark.parametrize("name", ["linear", "cosine", "inverse_sqrt", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedule_equals_transformers_after_the_warm_up(name, warmup):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(TRANSFORMERS_NAME.get(name, name), optimizer, warmup, TOTAL)
    ours = schedule(OptimizerConfig(schedule=name, warmup_steps=warmup), TOTAL)
    for step in range(TOTAL + 5):
        expected = (step + 1) / (warmup + 1) if step < warmup else theirs.get_last_lr()[0]
        assert ours(step) == pytest.approx(expected, abs=1e-12), step
        optimizer.step()
        theirs.step()


def test_warmup_ratio_is_a_share_of_all_steps_and_warmup_steps_override_it():
    by_ratio = schedule(OptimizerConfig(schedule="constant", warmup_ratio=0.1), TOTAL)
    assert [by_ratio(s) for s in (0, 3, 6)] == pytest.approx([1 / 7, 4 / 7, 1.0])
    by_steps = schedule(OptimizerConfig(schedule="constant", warmup_ratio=0.5, warmup_steps=2), TOTAL)
    assert [by_steps(s) for s in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1.0])


@pytest.mark.parametrize("warmup", [0, 1, 2, 50, 200])
def test_no_step_of_a_run_is_made_at_rate_0(warmup):
    for name in ("linear", "cosine", "inverse_sqrt", "constant"):
        rates = [schedule(OptimizerConfig(schedule=name, warmup_steps=warmup), TOTAL)(step) for step in range(TOTAL)]
        assert min(rates) > 0
        assert rates[:warmup] == sorted(set(rates[:warmup])), "the warm-up rises at every step"


@pytest.mark.parametrize(
    ("name", "before", "now", "said"),
    [
        ("linear", 60, 60, ""),
        ("linear", None, 60, ""),
        ("constant", 60, 90, ""),  # past the warm-up of either
        ("linear", 60, 120, "had 60 when its checkpoint was written: linear with 12 warm-up steps goes on at 4.63e-07"),
        ("cosine", 120, 60, "this run has 60 steps, and had 120"),
    ],
)
def test_a_schedule_that_goes_on_with_another_total_says_at_which_rate(name, before, now, said):
    note = total_steps_note(OptimizerConfig(schedule=name), 20, before, now)
    assert said in note
    assert bool(said) == bool(note)


def test_optimizers_take_every_setting():
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    common: dict[str, Any] = {"lr": 0.3, "eps": 1e-5, "weight_decay": 0.2}
    adamw = make_optimizer(OptimizerConfig(name="adamw", betas=(0.8, 0.9), **common), parameter)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {"betas": (0.8, 0.9), **common}.items() <= adamw.defaults.items()
    rmsprop = make_optimizer(OptimizerConfig(name="rmsprop", alpha=0.7, **common), parameter)
    assert isinstance(rmsprop, torch.optim.RMSprop)
    assert {"alpha": 0.7, **common}.items() <= rmsprop.defaults.items()


def trained(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], steps: int = 5) -> list[torch.Tensor]:
    """Parameters of odd sizes after some steps with gradients that depend on them."""
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(n, generator=draw)) for n in (1, 37, 1000, 4099)]
    optimizer = make(parameters)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = parameter.detach().sin() + 0.1 * torch.randn(len(parameter), generator=draw)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_fused_rmsprop_is_torchs_to_the_last_digits(monkeypatch, weight_decay):
    monkeypatch.setattr(optim, "SLICE", 100)
    config = OptimizerConfig(name="rmsprop", lr=0.01, weight_decay=weight_decay)
    ours = trained(lambda parameters: make_optimizer(config, parameters, fused=True))
    plain = trained(lambda parameters: make_optimizer(config, parameters))
    theirs = trained(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-8, weight_decay=weight_decay))
    assert all(torch.equal(a, b) for a, b in zip(plain, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rmsprops_state_has_torchs_names_and_counts_its_steps():
    parameter = torch.nn.Parameter(torch.ones(3))
    ours = make_optimizer(OptimizerConfig(name="rmsprop"), [parameter], fused=True)
    theirs = torch.optim.RMSprop([parameter])
    for optimizer in (ours, theirs):
        for _ in range(2):
            parameter.grad = torch.ones(3)
            optimizer.step()
    assert ours.state[parameter].keys() == theirs.state[parameter].keys()
    assert ours.state[parameter]["step"] == theirs.state[parameter]["step"] == 2


def test_the_fused_adamw_is_torchs_to_the_last_digits():
    config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1)
    ours = trained(lambda parameters: make_optimizer(config, parameters, fused=True))
    plain = trained(lambda parameters: make_optimizer(config, parameters))
    theirs = trained(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    assert all(torch.equal(a, b) for a, b in zip(plain, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_optimizer_on_the_host_has_pinned_memory_beside_a_gpu():
    learner = LearnerConfig(zero_stage=2, offload_optimizer=True)
    for on_gpu in (False, True):
        config = deepspeed_config(ModelConfig(path="m"), learner, OptimizerConfig(), on_gpu=on_gpu)
        assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": on_gpu}


def test_bf16_has_masters_and_gradient_sums_in_fp32_at_every_stage():
    bf16, fp32 = ModelConfig(path="m", dtype="bfloat16"), ModelConfig(path="m", dtype="float32")
    assert [effective_zero_stage(fp32, LearnerConfig(zero_stage=s)) for s in range(4)] == [0, 1, 2, 3]
    assert [effective_zero_stage(bf16, LearnerConfig(zero_stage=s)) for s in range(4)] == [2, 2, 2, 3]
    config = deepspeed_config(bf16, LearnerConfig(), OptimizerConfig(max_grad_norm=0.5))
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 0.5
    assert "bf16" not in deepspeed_config(fp32, LearnerConfig(), OptimizerConfig())
