"""Hints name trouble that is there, once, and stay quiet about noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.reports.hints import Hints


def hints_of(history: list[dict[str, float]], window: int = 10) -> list[str]:
    given: list[str] = []
    hints = Hints(given.append, window)
    for metrics in history:
        hints.observe(metrics)
    return given


NOISE = np.random.default_rng(0).normal(size=(200, 2))
WITH_REFERENCE: dict[str, Any] = {"logratios/segment_margin": 0.1}
ORPO: dict[str, Any] = {"nll_loss": 1.0, "log_odds_ratio": -0.4}


def history(
    of: str, chosen: float, rejected: float, noise: float = 0.1, steps: int = 40, **more: float
) -> list[dict[str, float]]:
    """Steps in which ``of``/chosen and ``of``/rejected change by so much a step, with noise on each."""
    found = []
    for step in range(steps):
        values = {
            "chosen": chosen * step + noise * NOISE[step, 0],
            "rejected": rejected * step + noise * NOISE[step, 1],
        }
        margin = values["chosen"] - values["rejected"]
        found.append({f"{of}/{side}": value for side, value in values.items()} | {"rewards/margins": margin} | more)
    return found


def test_falling_rewards_with_a_growing_margin_are_named_once() -> None:
    given = hints_of(history("rewards", -0.1, -0.3, **WITH_REFERENCE))
    assert len(given) == 1
    assert "rewards/chosen and rewards/rejected both fall" in given[0]
    assert "objective.beta" in given[0]


@pytest.mark.parametrize(
    "steps",
    [
        history("rewards", 0.1, -0.3, **WITH_REFERENCE),  # the chosen response becomes more likely
        history("rewards", -0.3, -0.1, **WITH_REFERENCE),  # the margin shrinks
        history("rewards", 0.0, 0.0, noise=1.0, steps=200, **WITH_REFERENCE),  # nothing but noise
        history("rewards", -0.001, -0.002, noise=1.0, steps=60, **WITH_REFERENCE),  # noise hides it
        history("rewards", -0.1, -0.3),  # rewards without a reference are log-probabilities of changing batches
    ],
)
def test_other_trends_of_the_rewards_give_no_hint(steps: list[dict[str, float]]) -> None:
    assert hints_of(steps) == []


def test_a_reward_above_zero_is_not_called_falling() -> None:
    steps = [
        s | {"rewards/chosen": s["rewards/chosen"] + 100} for s in history("rewards", -0.1, -0.3, **WITH_REFERENCE)
    ]
    assert hints_of(steps) == []


@pytest.mark.parametrize(
    ("metrics", "remedy", "other"),
    [
        (ORPO, "objective.orpo_lambda", "beta"),
        ({"nll_loss": 1.0}, "objective.cpo_alpha", "orpo_lambda"),
        ({}, "objective.sft_weight > 0", "cpo_alpha"),
    ],
)
def test_without_a_reference_log_probabilities_are_watched(metrics: dict[str, Any], remedy: str, other: str) -> None:
    given = hints_of(history("logps", -0.1, -0.3, **metrics))
    assert len(given) == 1
    assert "logps/chosen and logps/rejected both fall" in given[0]
    assert remedy in given[0]
    assert other not in given[0]
    assert hints_of(history("logps", 0.1, -0.3, **metrics)) == []
    assert hints_of(history("logps", 0.0, 0.0, noise=1.0, steps=200, **metrics)) == []


def test_identical_pairs_and_saturation_are_named() -> None:
    given = hints_of([{"pairs/identical_fraction": 0.8, "rewards/margins": 9.0, "rewards/accuracies": 1.0}] * 12)
    assert len(given) == 2
    assert "80%" in given[0]
    assert "saturated" in given[1]
