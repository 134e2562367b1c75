"""Win rates are means with honest errors; the influence of length is taken out of one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cluster.judging.win_rate import LENGTH_PRIOR, length_controlled, win_rate

PREFERENCES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(-500, 500)), min_size=2, max_size=40
)


def arrays(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in rows]), np.array([d for _, d in rows], float)


def judged(rng: np.random.Generator, better: float, biased: float, longer_by: np.ndarray) -> np.ndarray:
    """Preferences of a judge whose logit is ``better`` plus ``biased`` for the longer response."""
    logits = better + biased * np.tanh(longer_by / longer_by.std())
    return (rng.random(len(longer_by)) < 1 / (1 + np.exp(-logits))).astype(float)


def test_the_error_is_that_of_a_mean() -> None:
    share = win_rate(np.array([1.0, 0.0, 1.0, 0.5]))
    assert share.mean == 0.625
    assert share.error == pytest.approx(np.std([1, 0, 1, 0.5], ddof=1) / 2)
    assert win_rate(np.array([1.0])).error == 0.0


@settings(max_examples=40)
@given(PREFERENCES)
def test_swapping_the_models_mirrors_both_figures(rows: list[tuple[float, int]]) -> None:
    preferences, longer = arrays(rows)
    for share, mirrored in (
        (win_rate(preferences), win_rate(1 - preferences)),
        (length_controlled(preferences, longer), length_controlled(1 - preferences, -longer)),
    ):
        assert share.mean == pytest.approx(1 - mirrored.mean, abs=1e-7)
        assert share.error == pytest.approx(mirrored.error, abs=1e-7)
        assert 0 <= share.mean <= 1
        assert np.isfinite(share.error)


@settings(max_examples=40)
@given(PREFERENCES, st.integers(-300, 300))
def test_without_a_difference_of_lengths_nothing_is_corrected(rows: list[tuple[float, int]], longer: int) -> None:
    preferences, _ = arrays(rows)
    controlled = length_controlled(preferences, np.full(len(preferences), float(longer)))
    assert controlled.mean == pytest.approx(float(preferences.mean()), abs=1e-7)
    n = len(preferences)
    assert controlled.error == pytest.approx(win_rate(preferences).error * np.sqrt((n - 1) / n), abs=1e-7)


@settings(max_examples=40)
@given(PREFERENCES)
def test_the_fit_is_the_one_that_scipy_finds(rows: list[tuple[float, int]]) -> None:
    preferences, longer = arrays(rows)
    if set(preferences) in ({0.0}, {1.0}) or longer.std() == 0:
        return
    term = np.tanh(longer / longer.std())

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] + weights[1] * term
        return float(np.sum(np.logaddexp(0, logits) - preferences * logits) + LENGTH_PRIOR * weights[1] ** 2 / 2)

    found = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    assert length_controlled(preferences, longer).mean == pytest.approx(1 / (1 + np.exp(-found.x[0])), abs=1e-4)


def test_a_judge_that_likes_length_alone_is_corrected_to_half() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(150, 200, 800)
    preferences = judged(rng, better=0.0, biased=2.0, longer_by=longer)
    raw, controlled = win_rate(preferences), length_controlled(preferences, longer)
    assert raw.mean > 0.65
    assert abs(controlled.mean - 0.5) < 3 * controlled.error
    assert controlled.error < 0.05


def test_a_better_model_stays_better_whatever_the_lengths() -> None:
    rng = np.random.default_rng(1)
    longer = rng.normal(-150, 200, 800)
    controlled = length_controlled(judged(rng, better=1.0, biased=2.0, longer_by=longer), longer)
    assert abs(controlled.mean - 1 / (1 + np.exp(-1.0))) < 3 * controlled.error


def test_the_stated_error_of_the_controlled_rate_is_the_spread_over_repetitions() -> None:
    rng = np.random.default_rng(2)
    longer = rng.normal(100, 200, 300)
    shares = [length_controlled(judged(rng, 0.4, 1.5, longer), longer) for _ in range(200)]
    spread = float(np.std([share.mean for share in shares]))
    assert np.mean([share.error for share in shares]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_model_that_always_wins_or_loses_has_that_rate(outcome: float) -> None:
    share = length_controlled(np.full(5, outcome), np.arange(5, dtype=np.float64))
    assert (share.mean, share.error) == (outcome, 0.0)
