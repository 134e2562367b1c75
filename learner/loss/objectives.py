"""The losses: small functions from the log-probabilities of pairs to (loss, metrics), each with its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.imports import import_function
from learner.config import ObjectiveConfig
from learner.model.packing import CHOSEN_SEGMENT, CHOSEN_SUFFIX, PREFIX, REJECTED_SEGMENT, REJECTED_SUFFIX

CHOSEN = [PREFIX, CHOSEN_SEGMENT, CHOSEN_SUFFIX]
REJECTED = [PREFIX, REJECTED_SEGMENT, REJECTED_SUFFIX]


@dataclass(frozen=True)
class Scores:
    """What a loss sees of a batch of pairs. Prompt tokens are never in it.

    Regions are in the order of ``contracts.pair.REGIONS``: the shared prefix A, then B and C of the chosen
    response, then B' and C of the rejected one. A belongs to both responses.
    """

    policy: Tensor
    """float32 [pairs, 5], nats, differentiable: sums of log-probabilities by region."""
    counts: Tensor
    """int32 [pairs, 5]: tokens by region."""
    reference: Tensor | None = None
    """float32 [pairs, 5] under the reference, for objectives that have one."""

    @property
    def chosen(self) -> Tensor:
        """[pairs]: log p(y+ | x)."""
        return self.policy[:, CHOSEN].sum(1)

    @property
    def rejected(self) -> Tensor:
        """[pairs]: log p(y- | x)."""
        return self.policy[:, REJECTED].sum(1)

    @property
    def chosen_tokens(self) -> Tensor:
        """[pairs], at least 1."""
        return self.counts[:, CHOSEN].sum(1).clamp(min=1)

    @property
    def rejected_tokens(self) -> Tensor:
        """[pairs], at least 1."""
        return self.counts[:, REJECTED].sum(1).clamp(min=1)

    @property
    def mean_chosen(self) -> Tensor:
        """[pairs]: log p(y+ | x) per token."""
        return self.chosen / self.chosen_tokens

    @property
    def mean_rejected(self) -> Tensor:
        """[pairs]: log p(y- | x) per token."""
        return self.rejected / self.rejected_tokens

    @property
    def ratio(self) -> Tensor:
        """[pairs, 5]: log-ratio of policy to reference by region."""
        if self.reference is None:
            raise ValueError("this objective compares with a reference, and none was computed")
        return self.policy - self.reference

    @property
    def chosen_ratio(self) -> Tensor:
        """[pairs]"""
        return self.ratio[:, CHOSEN].sum(1)

    @property
    def rejected_ratio(self) -> Tensor:
        """[pairs]"""
        return self.ratio[:, REJECTED].sum(1)


Metrics = dict[str, Tensor]
"""Per-pair values, each [pairs], detached."""
Loss = Callable[[Scores], tuple[Tensor, Metrics]]
"""Loss summed over the pairs (scalar; the caller divides by the global number of pairs), and metrics."""


@dataclass(frozen=True)
class Objective:
    """A loss and what must be computed for it."""

    fn: Loss
    needs_reference: bool
    needs_rejected: bool
    """False: the rejected branch need not be computed (pack with ``chosen_only``)."""
    needs_prefix_grad: bool
    """False: log p(A) cancels, so its head runs without gradient (score with ``prefix_grad=False``)."""


def resolve_objective(config: ObjectiveConfig) -> Objective:
    """The configured loss.

    A loss of the user's own is named ``module:function``; it takes ``Scores`` and returns (loss summed over
    the pairs, per-pair metrics). What it needs it says by attributes of the function, each False or True:
    ``needs_reference`` (default False), ``needs_rejected`` and ``needs_prefix_grad`` (default True).

    Raises:
        UserError: the named function can't be imported.
    """
    c = config
    losses: dict[str, Objective] = {
        #                  loss                                               reference, rejected, prefix gradient
        "sft": Objective(sft, False, False, True),
        "dpo": Objective(partial(dpo, beta=c.beta, label_smoothing=c.label_smoothing), True, True, False),
        "dpo_norm": Objective(partial(dpo_norm, beta=c.beta), True, True, True),
        "robust": Objective(partial(robust, beta=c.beta, label_smoothing=c.label_smoothing), True, True, False),
        "ipo": Objective(partial(ipo, beta=c.beta), True, True, True),
        "hinge": Objective(partial(hinge, beta=c.beta), True, True, False),
        "sppo": Objective(partial(sppo, beta=c.beta), True, True, True),
        "nca": Objective(partial(nca, beta=c.beta), True, True, True),
        "apo_zero": Objective(partial(apo_zero, beta=c.beta), True, True, True),
        "apo_down": Objective(partial(apo_down, beta=c.beta), True, True, True),
        "simpo": Objective(partial(simpo, beta=c.beta, gamma=c.simpo_gamma), False, True, True),
        "orpo": Objective(partial(orpo, weight=c.orpo_lambda), False, True, True),
        "cpo": Objective(partial(cpo, beta=c.beta, alpha=c.cpo_alpha), False, True, c.cpo_alpha > 0),
    }
    chosen = _import_loss(c.name) if ":" in c.name else losses[c.name]
    if c.sft_weight and c.name != "sft":
        chosen = replace(chosen, fn=partial(_with_sft, chosen.fn, c.sft_weight), needs_prefix_grad=True)
    return replace(chosen, fn=partial(_with_common_metrics, chosen.fn, chosen.needs_rejected))


def sft(scores: Scores) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood per token of the chosen response; every response counts the same."""
    nll = -scores.mean_chosen
    return nll.sum(), {"nll_loss": nll.detach()}


def dpo(scores: Scores, *, beta: float, label_smoothing: float = 0.0) -> tuple[Tensor, Metrics]:
    """Direct Preference Optimization, Rafailov et al., arXiv 2305.18290 (eq. 7).

    ``label_smoothing`` e is the share of flipped preferences: conservative DPO (Mitchell, 2023, "A note on
    DPO with noisy preferences").
    """
    margin = beta * (scores.chosen_ratio - scores.rejected_ratio)
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return loss.sum(), _rewards(beta * scores.chosen_ratio, beta * scores.rejected_ratio)


def dpo_norm(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """DPO on log-ratios per token, as Tulu 3 trains: Lambert et al., arXiv 2411.15124."""
    chosen, rejected = _ratios_per_token(scores)
    return -F.logsigmoid(beta * (chosen - rejected)).sum(), _rewards(beta * chosen, beta * rejected)


def robust(scores: Scores, *, beta: float, label_smoothing: float) -> tuple[Tensor, Metrics]:
    """Robust DPO, Chowdhury et al., arXiv 2403.00409: DPO's loss without bias when a share of
    ``label_smoothing`` of the preferences is flipped."""
    margin = beta * (scores.chosen_ratio - scores.rejected_ratio)
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    rewards = _rewards(beta * scores.chosen_ratio, beta * scores.rejected_ratio)
    return loss.sum() / (1 - 2 * label_smoothing), rewards


def ipo(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Identity Preference Optimization, Azar et al., arXiv 2310.12036 (eq. 17, beta is its tau).

    Log-ratios are per token, as in the paper's experiments (its authors to TRL's) and in TRL.
    """
    chosen, rejected = _ratios_per_token(scores)
    loss = (chosen - rejected - 1 / (2 * beta)) ** 2
    return loss.sum(), _rewards(beta * scores.chosen_ratio, beta * scores.rejected_ratio)


def hinge(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Hinge on DPO's margin: SLiC-HF, Zhao et al., arXiv 2305.10425, in the form of Liu et al., arXiv 2309.06657."""
    margin = beta * (scores.chosen_ratio - scores.rejected_ratio)
    return torch.relu(1 - margin).sum(), _rewards(beta * scores.chosen_ratio, beta * scores.rejected_ratio)


def sppo(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Self-Play Preference Optimization, Wu et al., arXiv 2405.00675 (eq. 4.7), the chosen response taken to win
    with certainty."""
    loss = (scores.chosen_ratio - 0.5 / beta) ** 2 + (scores.rejected_ratio + 0.5 / beta) ** 2
    return loss.sum(), _rewards(beta * scores.chosen_ratio, beta * scores.rejected_ratio)


def nca(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Noise Contrastive Alignment for pairs, Chen et al., arXiv 2402.05369: keeps the chosen response likely."""
    chosen, rejected = beta * scores.chosen_ratio, beta * scores.rejected_ratio
    loss = -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
    return loss.sum(), _rewards(chosen, rejected)


def apo_zero(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Anchored Preference Optimization, D'Oosterlinck et al., arXiv 2408.06266 (eq. 7): the chosen response up, the
    rejected one down; for data that is better than the model."""
    chosen, rejected = beta * scores.chosen_ratio, beta * scores.rejected_ratio
    return (torch.sigmoid(-chosen) + torch.sigmoid(rejected)).sum(), _rewards(chosen, rejected)


def apo_down(scores: Scores, *, beta: float) -> tuple[Tensor, Metrics]:
    """Anchored Preference Optimization (eq. 8): both down, the rejected one more; for data that is worse than the
    model."""
    chosen, rejected = beta * scores.chosen_ratio, beta * scores.rejected_ratio
    return (torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)).sum(), _rewards(chosen, rejected)


def simpo(scores: Scores, *, beta: float, gamma: float) -> tuple[Tensor, Metrics]:
    """Simple Preference Optimization, Meng et al., arXiv 2405.14734 (eq. 6): no reference, per-token rewards."""
    margin = beta * (scores.mean_chosen - scores.mean_rejected) - gamma
    return -F.logsigmoid(margin).sum(), _rewards(beta * scores.mean_chosen, beta * scores.mean_rejected)


def orpo(scores: Scores, *, weight: float) -> tuple[Tensor, Metrics]:
    """Odds Ratio Preference Optimization, Hong et al., arXiv 2403.07691 (eqs. 6 and 7): no reference.

    The likelihood term scores the response alone and counts every response the same.
    """
    log_odds = _log_odds(scores.mean_chosen) - _log_odds(scores.mean_rejected)
    ratio = F.logsigmoid(log_odds)
    nll = -scores.mean_chosen
    extra = {"nll_loss": nll.detach(), "log_odds_ratio": ratio.detach(), "log_odds_chosen": log_odds.detach()}
    return (nll - weight * ratio).sum(), _rewards(weight * scores.mean_chosen, weight * scores.mean_rejected) | extra


def cpo(scores: Scores, *, beta: float, alpha: float) -> tuple[Tensor, Metrics]:
    """Contrastive Preference Optimization, Xu et al., arXiv 2401.08417 (eq. 5): no reference, plus likelihood."""
    margin = beta * (scores.chosen - scores.rejected)
    nll = -scores.mean_chosen
    loss = -F.logsigmoid(margin) + alpha * nll
    return loss.sum(), _rewards(beta * scores.chosen, beta * scores.rejected) | {"nll_loss": nll.detach()}


def _ratios_per_token(scores: Scores) -> tuple[Tensor, Tensor]:
    """[pairs] of the chosen and the rejected response."""
    return scores.chosen_ratio / scores.chosen_tokens, scores.rejected_ratio / scores.rejected_tokens


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_logp), stable near both ends."""
    # expm1 keeps p near 1; p = 1 itself (a certain response) is held off by the smallest step of float32.
    return mean_logp - torch.log(-torch.expm1(mean_logp.clamp(max=-torch.finfo(torch.float32).eps)))


def _rewards(chosen: Tensor, rejected: Tensor) -> Metrics:
    """The field's names: rewards as the loss scales them, their difference, and whether it is positive."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }


def _with_sft(loss: Loss, weight: float, scores: Scores) -> tuple[Tensor, Metrics]:
    """Adds the chosen response's mean NLL: RPO, Pang et al., arXiv 2404.19733 (eq. 1)."""
    value, metrics = loss(scores)
    nll = -scores.mean_chosen
    return value + weight * nll.sum(), metrics | {"nll_loss": nll.detach()}


def _with_common_metrics(loss: Loss, rejected: bool, scores: Scores) -> tuple[Tensor, Metrics]:
    """Adds what every objective reports: sums of log-probabilities, of the responses and by region, and by how much
    B beats B' and C after B beats C after B'; with a reference the same of log-ratios."""
    value, metrics = loss(scores)
    policy = scores.policy.detach()
    common = {
        "logps/chosen": scores.chosen.detach(),
        "logps/prefix": policy[:, PREFIX],
        "logps/chosen_segment": policy[:, CHOSEN_SEGMENT],
        "logps/chosen_suffix": policy[:, CHOSEN_SUFFIX],
    }
    if rejected:
        common |= {
            "logps/rejected": scores.rejected.detach(),
            "logps/rejected_segment": policy[:, REJECTED_SEGMENT],
            "logps/rejected_suffix": policy[:, REJECTED_SUFFIX],
            "logps/segment_margin": policy[:, CHOSEN_SEGMENT] - policy[:, REJECTED_SEGMENT],
            "logps/suffix_margin": policy[:, CHOSEN_SUFFIX] - policy[:, REJECTED_SUFFIX],
        }
    if scores.reference is not None:
        ratio = scores.ratio.detach()
        common |= {
            "logratios/prefix": ratio[:, PREFIX],
            "logratios/segment_margin": ratio[:, CHOSEN_SEGMENT] - ratio[:, REJECTED_SEGMENT],
            "logratios/suffix_margin": ratio[:, CHOSEN_SUFFIX] - ratio[:, REJECTED_SUFFIX],
        }
    return value, common | metrics


def _import_loss(path: str) -> Objective:
    fn = import_function(path, "objective.name")
    return Objective(
        fn,
        getattr(fn, "needs_reference", False),
        getattr(fn, "needs_rejected", True),
        getattr(fn, "needs_prefix_grad", True),
    )
