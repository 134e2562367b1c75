"""Win rates out of preferences, raw and with the influence of length taken out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cluster.evaluation.messages import Share

Floats = NDArray[np.float64]

LENGTH_PRIOR = 1.0
"""Inverse variance of a normal prior on the coefficient of length, so that few prompts can't make it infinite."""
MOST_STEPS = 100
CONVERGED = 1e-10
"""Length of a Newton step, in units of the logit."""


def win_rate(preferences: Floats) -> Share:
    """Mean preference and its standard error over prompts.

    Args:
        preferences: [prompts], 1 where the model won, 0 where it lost, between them for ties and orders that disagree.
    """
    count = len(preferences)
    spread = float(np.std(preferences, ddof=1)) if count > 1 else 0.0
    return Share(float(np.mean(preferences)), spread / math.sqrt(count))


def length_controlled(preferences: Floats, longer_by: Floats) -> Share:
    """The win rate that the model would have if both responses were equally long.

    The idea is AlpacaEval 2's (Dubois et al., arXiv 2404.04475), without its term for the difficulty of each
    instruction, which is fitted on many models. With d the difference of lengths and s its standard deviation,

        logit P(win) = a + b · tanh(d / s)

    is fitted to the preferences by maximum likelihood, with a normal prior on b alone, and 1 / (1 + exp(-a)) is
    returned. Its standard error is the sandwich estimate, which holds for preferences between 0 and 1 too. Swapping
    the models gives exactly one minus it. Without any difference of lengths it is the raw win rate.

    Args:
        preferences: [prompts] in 0 to 1.
        longer_by: [prompts] characters that the model's response is longer than the other's.
    """
    if np.all(preferences == preferences[0]) and preferences[0] in (0.0, 1.0):
        return Share(float(preferences[0]), 0.0)  # a would be infinite
    scale = float(np.std(longer_by))
    term = np.tanh(longer_by / scale) if scale else np.zeros(len(preferences))
    inputs = np.stack([np.ones_like(term), term], axis=1)
    prior = np.diag([0.0, LENGTH_PRIOR])
    weights = _fit(inputs, preferences, prior)
    expected = _sigmoid(inputs @ weights)
    curvature = _curvature(inputs, expected, prior)
    scores = inputs * (preferences - expected)[:, None]
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ (scores.T @ scores) @ inverse
    share = float(_sigmoid(weights[:1])[0])
    return Share(share, share * (1.0 - share) * math.sqrt(float(covariance[0, 0])))


def _fit(inputs: Floats, targets: Floats, prior: Floats) -> Floats:
    """Newton's method; a step that does not lower the loss is halved. The loss is convex and its minimum finite."""

    def loss(weights: Floats) -> float:
        logits = inputs @ weights
        return float(np.sum(np.logaddexp(0.0, logits) - targets * logits) + weights @ prior @ weights / 2)

    weights = np.zeros(inputs.shape[1])
    for _ in range(MOST_STEPS):
        expected = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (expected - targets) + prior @ weights
        step = np.linalg.solve(_curvature(inputs, expected, prior), gradient)
        while float(np.linalg.norm(step)) > CONVERGED and loss(weights - step) > loss(weights):
            step = step / 2
        weights = weights - step
        if float(np.linalg.norm(step)) <= CONVERGED:
            break
    return weights


def _curvature(inputs: Floats, expected: Floats, prior: Floats) -> Floats:
    """Second derivative of the loss [2, 2]."""
    return (inputs * (expected * (1.0 - expected))[:, None]).T @ inputs + prior


def _sigmoid(logits: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -logits))
