"""Curves are thinned and smoothed without changing what they say."""

from __future__ import annotations

import numpy as np

from cluster.reports.page.series import curve, smoothed


def test_a_long_curve_keeps_its_mean_and_ends() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    drawn = curve(np.arange(10_000), values, points=500)
    assert len(drawn.x) == len(drawn.y) == len(drawn.smooth) == 500
    np.testing.assert_allclose(drawn.y.mean(), values.mean())
    np.testing.assert_allclose(drawn.y[0], values[:20].mean())
    np.testing.assert_allclose(drawn.x[-1], np.arange(9_980, 10_000).mean())


def test_steps_without_the_metric_are_left_out() -> None:
    drawn = curve(np.array([1, 2, 3, 4]), np.array([np.nan, 5.0, np.inf, 7.0]))
    assert drawn.x.tolist() == [2, 4]
    assert drawn.y.tolist() == [5, 7]


def test_smoothing_leaves_a_line_a_line_and_a_constant_constant() -> None:
    line = np.arange(100, dtype=np.float64)
    np.testing.assert_allclose(smoothed(line, 10)[5:-5], line[5:-5])
    np.testing.assert_allclose(smoothed(np.full(100, 3.0), 10), 3.0)


def test_smoothing_equals_a_weighted_mean_of_neighbours() -> None:
    values = np.random.default_rng(1).normal(size=30)
    weights = np.array([1, 2, 3, 2, 1])
    np.testing.assert_allclose(smoothed(values, 4)[10], (values[8:13] * weights).sum() / 9)
    np.testing.assert_allclose(smoothed(values, 4)[0], (values[:3] * weights[2:]).sum() / 6)


def test_too_few_points_are_left_as_they_are() -> None:
    values = np.array([1.0, 5.0])
    assert smoothed(values, 10).tolist() == [1, 5]
    assert curve(np.zeros(0, np.int64), np.zeros(0)).x.tolist() == []
