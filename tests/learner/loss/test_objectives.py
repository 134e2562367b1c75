"""Losses equal TRL's own functions, gradients too, and numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contracts.errors import UserError
from learner.config import PREFERENCE_OBJECTIVES, ObjectiveConfig
from learner.loss.objectives import Metrics, Objective, Scores, resolve_objective

PAIRS = 7


def random_scores(seed: int = 0, *, reference: bool = True) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 9, (PAIRS, 5), generator=generator, dtype=torch.int32)
    counts[2, 0] = counts[3, 4] = counts[4, 2] = 0
    scale = counts * 1.5
    policy = (-torch.rand(PAIRS, 5, generator=generator) * scale).requires_grad_()
    return Scores(policy, counts, -torch.rand(PAIRS, 5, generator=generator) * scale if reference else None)


def objective(**config: Any) -> Objective:
    return resolve_objective(ObjectiveConfig(**config))


def assert_equal_with_gradients(ours: torch.Tensor, theirs: torch.Tensor, policy: torch.Tensor) -> None:
    assert abs(ours.item() - theirs.item()) <= 1e-5 * max(1, abs(theirs.item()))
    (gradient,) = torch.autograd.grad(ours, policy, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, policy)
    assert (gradient - expected).abs().max() <= 1e-5
    assert expected.abs().max() > 1e-4


def trl_dpo_loss(scores: Scores, loss_type: str, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPOTrainer's own loss, run on a stand-in for the trainer; its model returns our token log-probabilities."""
    trl = pytest.importorskip("trl")
    assert scores.reference is not None
    counts = torch.cat((scores.chosen_tokens, scores.rejected_tokens))
    sums = torch.cat((scores.chosen, scores.rejected))
    mask = torch.arange(int(counts.max()) + 1)[None] <= counts[:, None]
    mask[:, 0] = False  # the prompt's one token
    token_logps = (sums / counts)[:, None] * mask[:, 1:]
    device = torch.device("cpu")
    accelerator = SimpleNamespace(device=device, gather=lambda t: t, gather_for_metrics=lambda t: t)
    from collections import defaultdict

    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(
        model=model,
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    zeros = torch.zeros_like(token_logps)
    outputs = SimpleNamespace(log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    inputs = {
        "input_ids": torch.zeros_like(mask, dtype=torch.long),
        "attention_mask": torch.ones_like(mask, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": scores.reference[:, [0, 1, 2]].sum(1),
        "ref_rejected_logps": scores.reference[:, [0, 3, 4]].sum(1),
    }
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


TRL_NAMES = {
    "dpo": "sigmoid",
    "dpo_norm": "sigmoid_norm",
    "robust": "robust",
    "ipo": "ipo",
    "hinge": "hinge",
    "sppo": "sppo_hard",
    "nca": "nca_pair",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
}


@pytest.mark.parametrize("name", TRL_NAMES)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_reference_losses_equal_trl(name, beta):
    scores, smoothing = random_scores(), 0.2 if name == "robust" else 0.0
    loss, metrics = objective(name=name, beta=beta, label_smoothing=smoothing).fn(scores)
    theirs = trl_dpo_loss(scores, TRL_NAMES[name], beta, smoothing)
    assert_equal_with_gradients(loss, theirs * PAIRS, scores.policy)
    assert metrics["rewards/chosen"].shape == (PAIRS,)


def trl_cpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, **settings: Any) -> Any:
    """CPOTrainer's own loss on a stand-in for the trainer: (losses, chosen rewards, rejected rewards, …), each
    [pairs]."""
    trl = pytest.importorskip("trl.experimental.cpo")
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "loss_type": "sigmoid", "simpo_gamma": 0.0}
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **(defaults | settings))
    return trl.CPOTrainer.cpo_loss(trainer, chosen, rejected)


def test_label_smoothing_equals_trls_conservative_loss():
    """TRL keeps it in CPOTrainer; given log-ratios in place of log-probabilities that is conservative DPO."""
    scores = random_scores()
    theirs, *_ = trl_cpo_loss(scores.chosen_ratio, scores.rejected_ratio, beta=0.3, label_smoothing=0.2)
    ours, _ = objective(name="dpo", beta=0.3, label_smoothing=0.2).fn(scores)
    assert_equal_with_gradients(ours, theirs.sum(), scores.policy)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4)])
def test_simpo_equals_trl(beta, gamma):
    scores = random_scores(reference=False)
    theirs, chosen, rejected = trl_cpo_loss(
        scores.mean_chosen, scores.mean_rejected, beta=beta, loss_type="simpo", simpo_gamma=gamma
    )
    ours, metrics = objective(name="simpo", beta=beta, simpo_gamma=gamma).fn(scores)
    assert_equal_with_gradients(ours, theirs.sum(), scores.policy)
    assert torch.allclose(metrics["rewards/chosen"], chosen)
    assert torch.allclose(metrics["rewards/rejected"], rejected)


def test_cpo_equals_trl_with_the_likelihood_term_per_response():
    scores = random_scores(reference=False)
    theirs, *_ = trl_cpo_loss(scores.chosen, scores.rejected, beta=0.2)
    ours, _ = objective(name="cpo", beta=0.2, cpo_alpha=0.6).fn(scores)
    assert_equal_with_gradients(ours, (theirs - 0.6 * scores.mean_chosen).sum(), scores.policy)


@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_orpo_equals_trl_on_the_response(weight):
    trl = pytest.importorskip("trl.experimental.orpo")
    scores = random_scores(reference=False)
    trainer = SimpleNamespace(beta=weight, accelerator=SimpleNamespace(device="cpu"))
    ratio, chosen, *_ = trl.ORPOTrainer.odds_ratio_loss(trainer, scores.mean_chosen, scores.mean_rejected)
    ours, metrics = objective(name="orpo", orpo_lambda=weight).fn(scores)
    assert_equal_with_gradients(ours, (-scores.mean_chosen - ratio).sum(), scores.policy)
    assert torch.allclose(metrics["rewards/chosen"], chosen)


def by_hand() -> Scores:
    """One pair: A, B, C = -1, -2, -3 in 1, 2, 3 tokens; B', C = -5, -4 in 2, 2; the reference is flat."""
    return Scores(
        torch.tensor([[-1.0, -2.0, -3.0, -5.0, -4.0]]),
        torch.tensor([[1, 2, 3, 2, 2]], dtype=torch.int32),
        torch.tensor([[-1.5, -2.0, -3.0, -4.0, -4.0]]),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "sft"}, 1.0),  # 6 nats over 6 tokens
        ({"name": "dpo", "beta": 0.5}, math.log1p(math.exp(-0.5))),  # ratios 0.5 and -0.5: margin 0.5 * 1
        ({"name": "dpo", "beta": 0.5, "sft_weight": 2.0}, math.log1p(math.exp(-0.5)) + 2.0),
        ({"name": "dpo_norm", "beta": 0.5}, math.log1p(math.exp(-0.5 * (0.5 / 6 + 0.5 / 5)))),
        (
            {"name": "robust", "beta": 0.5, "label_smoothing": 0.25},
            (0.75 * math.log1p(math.exp(-0.5)) - 0.25 * math.log1p(math.exp(0.5))) / 0.5,
        ),
        ({"name": "sppo", "beta": 0.5}, 0.25 + 0.25),  # (0.5 - 1)^2 + (-0.5 + 1)^2
        ({"name": "nca", "beta": 0.5}, 1.5 * math.log1p(math.exp(-0.25)) + 0.5 * math.log1p(math.exp(0.25))),
        ({"name": "apo_zero", "beta": 0.5}, 2 / (1 + math.exp(0.25))),
        ({"name": "apo_down", "beta": 0.5}, 1 / (1 + math.exp(-0.25)) + 1 / (1 + math.exp(0.5))),
        ({"name": "hinge", "beta": 0.5}, 0.5),
        ({"name": "ipo", "beta": 0.5}, (0.5 / 6 + 0.5 / 5 - 1) ** 2),
        ({"name": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, math.log1p(math.exp(-(2 * (-1 + 2) - 0.5)))),
        ({"name": "cpo", "beta": 0.1, "cpo_alpha": 0.5}, math.log1p(math.exp(-0.1 * 4)) + 0.5),
        (
            {"name": "orpo", "orpo_lambda": 0.3},
            1 + 0.3 * math.log1p((math.exp(-2) / (1 - math.exp(-2))) / (math.exp(-1) / (1 - math.exp(-1)))),
        ),
    ],
)
def test_losses_equal_numbers_worked_out_by_hand(config, expected):
    loss, _ = objective(**config).fn(by_hand())
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_loss_is_summed_so_that_parts_of_a_batch_add_up():
    scores = random_scores()
    assert scores.reference is not None
    whole, _ = objective(name="dpo").fn(scores)
    parts = [
        objective(name="dpo").fn(Scores(scores.policy[i], scores.counts[i], scores.reference[i]))[0]
        for i in (slice(0, 3), slice(3, PAIRS))
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["sft", *PREFERENCE_OBJECTIVES])
def test_what_is_declared_without_prefix_gradient_has_none(name):
    scores, chosen = random_scores(), objective(name=name, cpo_alpha=0.0)
    (gradient,) = torch.autograd.grad(chosen.fn(scores)[0], scores.policy)
    if not chosen.needs_prefix_grad:
        assert gradient[:, 0].abs().max() <= 1e-7
    else:
        assert gradient[:, 0].abs().max() > 1e-4
    if not chosen.needs_rejected:
        assert (gradient[:, 3:] == 0).all()


def test_sft_term_needs_the_prefix_gradient():
    assert not objective(name="dpo").needs_prefix_grad
    assert objective(name="dpo", sft_weight=0.1).needs_prefix_grad


def test_metrics_carry_the_fields_names_per_pair_and_region():
    _, metrics = objective(name="dpo", beta=0.5).fn(by_hand())
    assert {name: round(value.item(), 4) for name, value in metrics.items()} == {
        "rewards/chosen": 0.25,
        "rewards/rejected": -0.25,
        "rewards/margins": 0.5,
        "rewards/accuracies": 1.0,
        "logps/chosen": -6.0,
        "logps/rejected": -10.0,
        "logps/prefix": -1.0,
        "logps/chosen_segment": -2.0,
        "logps/chosen_suffix": -3.0,
        "logps/rejected_segment": -5.0,
        "logps/rejected_suffix": -4.0,
        "logps/segment_margin": 3.0,
        "logps/suffix_margin": 1.0,
        "logratios/prefix": 0.5,
        "logratios/segment_margin": 1.0,
        "logratios/suffix_margin": 0.0,
    }
    assert "logps/rejected" not in objective(name="sft").fn(by_hand())[1]


def test_orpo_stays_finite_when_the_response_is_certain():
    scores = Scores(torch.zeros(1, 5, requires_grad=True), torch.ones(1, 5, dtype=torch.int32))
    loss, _ = objective(name="orpo").fn(scores)
    (gradient,) = torch.autograd.grad(loss, scores.policy)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def own_loss(scores: Scores) -> tuple[torch.Tensor, Metrics]:
    return -(scores.chosen_ratio - scores.rejected_ratio).sum(), {"own": scores.chosen.detach()}


vars(own_loss).update(needs_reference=True, needs_prefix_grad=False)


def test_a_loss_of_the_users_own_is_found_by_import_path(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "users_losses", sys.modules[__name__])
    own = objective(name="users_losses:own_loss", sft_weight=0.5)
    assert (own.needs_reference, own.needs_rejected, own.needs_prefix_grad) == (True, True, True)
    loss, metrics = own.fn(by_hand())
    assert loss.item() == pytest.approx(-1.0 + 0.5)
    assert {"own", "logps/chosen"} <= metrics.keys()


@pytest.mark.parametrize("path", ["no_such_module:f", "math:no_such_function", "math:pi"])
def test_a_loss_that_cannot_be_imported_is_named(path):
    with pytest.raises(UserError, match=path.split(":")[0]):
        objective(name=path)
