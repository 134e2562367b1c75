"""Curves made ready to draw: thinned to what a screen shows, and smoothed. Functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POINTS = 800
"""Most points of a curve."""
SMOOTHING_SHARE = 0.04
"""Share of the run over which a smoothed curve averages."""


@dataclass(frozen=True)
class Curve:
    """One metric as it is drawn."""

    x: NDArray[np.float64]
    """float64 [points]: optimizer step, the mean over those that a point stands for."""
    y: NDArray[np.float64]
    """float64 [points]: the mean over those steps."""
    smooth: NDArray[np.float64]
    """float64 [points]: averaged over neighbours."""


def curve(steps: NDArray[np.int64], values: NDArray[np.float64], points: int = POINTS) -> Curve:
    """A metric over the steps that have it, at most ``points`` of them; a longer one is averaged by stretches."""
    known = np.isfinite(values)
    x, y = steps[known].astype(np.float64), values[known]
    if len(x) > points:
        starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
        counts = np.diff(np.append(starts, len(x)))
        x, y = np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
    return Curve(x, y, smoothed(y, SMOOTHING_SHARE * len(y)))


def smoothed(values: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """Averages over about ``span`` points on both sides together, the near ones with more weight; at the ends over what
    there is. Centred, so that a curve and its average do not lie apart."""
    reach = round(span / 2)
    kernel = np.concatenate((np.arange(1, reach + 1), np.arange(reach + 1, 0, -1))).astype(np.float64)
    if reach == 0 or len(values) < 2 * reach + 1:
        return values.copy()
    whole = slice(reach, reach + len(values))
    return np.convolve(values, kernel)[whole] / np.convolve(np.ones_like(values), kernel)[whole]
