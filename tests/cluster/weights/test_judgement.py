"""An engine is judged by the distribution of its differences: rounding never alarms, wrong weights do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.weights.judgement import (
    CEILING,
    FLOOR,
    Difference,
    Scores,
    bounds,
    difference,
    evidence,
    fault,
    typical,
)

FACTOR = 3.0
ROUNDING = {"float32": 5e-6, "bfloat16": 0.052}
"""Mean |Δ log p| in nats, measured on SmolLM2-135M; the distribution is close to exponential."""
DTYPES = pytest.mark.parametrize("dtype", ROUNDING)


class Learner:
    """Log-probabilities of 32 rows that training moves, and what an engine computes of the same weights."""

    def __init__(self, seed: int, dtype: str, tokens: int = 32) -> None:
        self._rng, self._rounding = np.random.default_rng(seed), ROUNDING[dtype]
        self.scores: Scores = [self._rng.gumbel(-3, 1, tokens).astype(np.float32) for _ in range(32)]

    def train(self, nats: float) -> None:
        """Move every log-probability by about so much."""
        self.scores = [row + self._rng.normal(0, nats, len(row)).astype(np.float32) for row in self.scores]

    def engine(self, scores: Scores | None = None) -> Scores:
        """With rounding of its own."""
        rows = self.scores if scores is None else scores
        return [row + self._rng.laplace(0, self._rounding, len(row)).astype(np.float32) for row in rows]

    def judge(
        self, theirs: Scores, previous: Scores | None, calibrated: Difference | None, dtype: str, cached: Scores = ()
    ) -> str:
        after_cache = np.array([row[-1] for row in cached or theirs], np.float32)
        return fault(evidence(self.scores, theirs, after_cache, previous), calibrated, dtype, FACTOR)


@DTYPES
@given(seed=st.integers(0, 2**32 - 1), drift=st.sampled_from([0.0, 1e-6, 1e-3, 0.05, 1.0]), tokens=st.integers(8, 32))
def test_the_same_rounding_never_alarms(dtype, seed, drift, tokens):
    learner = Learner(seed, dtype, tokens)
    start = learner.engine()
    assert not learner.judge(start, None, None, dtype)
    calibrated = difference(learner.scores, start)
    for _ in range(10):
        previous = learner.scores
        learner.train(drift)
        assert not learner.judge(learner.engine(), previous, calibrated, dtype)


def test_the_worst_of_a_thousand_tokens_is_no_measure_in_bfloat16():
    """What was compared with 0.05 nats: every healthy engine is over it."""
    learner = Learner(0, "bfloat16")
    off = difference(learner.scores, learner.engine())
    assert off.largest > 0.2
    assert not learner.judge(learner.engine(), None, None, "bfloat16")


@DTYPES
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(1.0, 20.0))
def test_a_wrong_layer_alarms_at_the_start_and_later(dtype, seed, shift):
    learner = Learner(seed, dtype)
    calibrated = difference(learner.scores, learner.engine())
    wrong = [row - shift * np.random.default_rng(seed).random(len(row)).astype(np.float32) for row in learner.engine()]
    assert "nats per token off the learner's" in learner.judge(wrong, None, None, dtype)
    assert "nats per token off the learner's" in learner.judge(wrong, learner.scores, calibrated, dtype)


@DTYPES
def test_a_few_tokens_that_are_far_off_alarm_by_the_quantile(dtype):
    """A fault that few tokens show, such as a lost window that few rows reach."""
    learner = Learner(0, dtype)
    calibrated = difference(learner.scores, learner.engine())
    theirs = [row.copy() for row in learner.engine()]
    theirs[3][:16] += 3.0
    reason = learner.judge(theirs, None, calibrated, dtype)
    assert "at the 99 % quantile" in reason


@DTYPES
@given(seed=st.integers(0, 2**32 - 1), drift=st.floats(4.0, 100.0))
def test_weights_of_the_check_before_are_told_by_being_nearer_to_them(dtype, seed, drift):
    """Long before they are off by the multiple of the calibration and its floor."""
    learner = Learner(seed, dtype)
    calibrated = difference(learner.scores, learner.engine())
    previous = learner.scores
    learner.train(drift * ROUNDING[dtype])
    reason = learner.judge(learner.engine(previous), previous, calibrated, dtype)
    assert "its weights are older than it says" in reason


@DTYPES
def test_a_cached_prefix_of_older_weights_alarms(dtype):
    learner = Learner(0, dtype)
    calibrated = difference(learner.scores, learner.engine())
    older = [row - 2.0 for row in learner.engine()]
    reason = learner.judge(learner.engine(), None, calibrated, dtype, cached=older)
    assert "its prefix cache is not of these weights" in reason


@DTYPES
def test_a_log_probability_that_is_nan_alarms(dtype):
    learner = Learner(0, dtype)
    theirs = learner.engine()
    theirs[1][2] = np.nan
    assert "nan nats" in learner.judge(theirs, None, None, dtype)
    assert "nan nats" in learner.judge(theirs, learner.scores, difference(learner.scores, learner.scores), dtype)
    broken = [np.full(1, np.nan, np.float32)] * len(theirs)
    assert "prefix cache" in learner.judge(learner.engine(), None, None, dtype, cached=broken)


def test_the_statistics_are_those_of_all_tokens():
    ours = [np.arange(60, dtype=np.float32), np.zeros(40, np.float32)]
    theirs = [np.arange(60, dtype=np.float32) + 1, np.linspace(0, 3, 40, dtype=np.float32)]
    off = np.concatenate((np.ones(60), np.linspace(0, 3, 40)))
    found = difference(ours, theirs)
    assert (found.mean, found.p99, found.largest) == pytest.approx((off.mean(), np.quantile(off, 0.99), 3.0))


def test_scores_of_other_tokens_are_an_error():
    with pytest.raises(ValueError, match="3 log-probabilities of the learner, 2 of the engine"):
        difference([np.zeros(3, np.float32)], [np.zeros(2, np.float32)])


def test_bounds_are_a_multiple_of_the_calibration_and_a_floor_or_the_ceiling():
    calibrated = Difference(0.05, 0.2, 0.4)
    most = bounds(calibrated, "bfloat16", 2.0)
    assert (most.mean, most.p99) == pytest.approx((0.1 + FLOOR["bfloat16"].mean, 0.4 + FLOOR["bfloat16"].p99))
    assert bounds(None, "float32", 2.0) == CEILING["float32"]


def test_who_has_no_calibration_is_judged_by_the_median_of_the_others():
    assert typical([]) is None
    assert typical([Difference(1, 2, 9), Difference(3, 1, 5), Difference(2, 6, 7)]) == Difference(2, 2, 7)
