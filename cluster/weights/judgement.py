"""Judges an engine by how far its log-probabilities are off the learner's: by distribution, not by the worst token.

Two programs that compute the same model with the same weights differ by rounding. In bfloat16 that is a lot: on
SmolLM2-135M two attention implementations of one library are 0.05 nats apart on average, 0.21 at the 99 % quantile and
0.3 to 0.4 at most. The largest difference of many tokens grows with their number, mean and quantile do not. So these
are compared with what they were when both sides held the same starting weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[NDArray[np.float32]]
"""Log-probabilities in nats, float32 [tokens - 1] per sequence."""

STALE = 2.0
"""An engine is stale when it is this many times nearer to earlier weights than to those that it should hold, and this
many times as far from these as rounding explains."""


@dataclass(frozen=True)
class Difference:
    """|Δ log p| over the tokens of a check, in nats. NaN where a log-probability is."""

    mean: float
    p99: float
    """99 % quantile."""
    largest: float


@dataclass(frozen=True)
class Bounds:
    """The most that is allowed, in nats."""

    mean: float
    p99: float


@dataclass(frozen=True)
class Evidence:
    """What one engine's log-probabilities say at one check."""

    to_learner: Difference
    """From the learner's under the version that the engine says it holds."""
    to_previous: Difference | None
    """From the learner's at the check before; None at the first."""
    after_cache: float
    """Largest |Δ log p| in nats of the tokens whose context the engine may read from its prefix cache."""


FLOOR = {"float32": Bounds(mean=1e-4, p99=1e-3), "bfloat16": Bounds(mean=0.02, p99=0.1)}
"""Added to the multiple of the calibration. Rounding depends on the weights too, and they change."""
CEILING = {"float32": Bounds(mean=1e-2, p99=0.1), "bfloat16": Bounds(mean=0.25, p99=1.25)}
"""Of the calibration itself, and of an engine where there is none. A lost sliding window is 0.1 to 0.5 nats off on
average, a wrong layer whole nats. float32 leaves room for GPUs that multiply in TF32."""


def difference(ours: Scores, theirs: Scores) -> Difference:
    """Over all tokens of all sequences.

    Raises:
        ValueError: the two do not speak of the same tokens.
    """
    off = np.concatenate([_distances(a, b) for a, b in zip(ours, theirs, strict=True)])
    return Difference(float(off.mean()), float(np.quantile(off, 0.99)), float(off.max()))


def evidence(ours: Scores, theirs: Scores, after_cache: NDArray[np.float32], previous: Scores | None) -> Evidence:
    """
    Args:
        ours, previous: the learner's, now and at the check before.
        theirs: the engine's.
        after_cache: float32 [sequences], the engine's once more: the last token of each sequence, its context read
            from the prefix cache.
    """
    last = np.array([sequence[-1] for sequence in ours], np.float32)
    return Evidence(
        to_learner=difference(ours, theirs),
        to_previous=None if previous is None else difference(previous, theirs),
        after_cache=float(_distances(last, after_cache).max()),
    )


def typical(calibrations: Sequence[Difference]) -> Difference | None:
    """The median of several engines' calibrations, for an engine without one; None if there are none."""
    if not calibrations:
        return None
    return Difference(*(median(getattr(c, name) for c in calibrations) for name in ("mean", "p99", "largest")))


def bounds(calibrated: Difference | None, dtype: str, factor: float) -> Bounds:
    """``factor`` times the calibration and a floor; the ceiling without a calibration."""
    if calibrated is None:
        return CEILING[dtype]
    floor = FLOOR[dtype]
    return Bounds(factor * calibrated.mean + floor.mean, factor * calibrated.p99 + floor.p99)


def fault(found: Evidence, calibrated: Difference | None, dtype: str, factor: float) -> str:
    """What is wrong with the engine; empty when nothing is. A NaN is wrong.

    Args:
        calibrated: the engine's own, or a typical one; None when this is the calibration.
        dtype: ``float32`` or ``bfloat16``, of both sides' arithmetic.
        factor: multiple of the calibration that is allowed.
    """
    most, off, before = bounds(calibrated, dtype, factor), found.to_learner, found.to_previous
    if calibrated and before and off.mean > STALE * max(before.mean, calibrated.mean):
        return (
            f"its weights are older than it says: {before.mean:.3g} nats per token off the learner's of the check "
            f"before, {off.mean:.3g} off those of now"
        )
    if not (off.mean <= most.mean and off.p99 <= most.p99):
        return (
            f"its log-probabilities are {off.mean:.3g} nats per token off the learner's, {off.p99:.3g} at the 99 % "
            f"quantile; allowed are {most.mean:.3g} and {most.p99:.3g}"
        )
    # Few tokens, so the bound on single ones.
    if not found.after_cache <= most.p99:
        return (
            f"its prefix cache is not of these weights: a token after a cached prefix is {found.after_cache:.3g} nats "
            f"off the learner's, allowed are {most.p99:.3g}"
        )
    return ""


def _distances(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """[tokens], in nats."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} log-probabilities of the learner, {len(theirs)} of the engine")
    return np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
