"""Says what the pairs of a batch are like: how far the new segment B' is from the original B."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from contracts.pair import PreferencePair


def pair_quality(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Means over a batch of generated pairs.

    ``pairs/eos_fraction``: share whose B' ends the response. ``pairs/edit_distance``: token-level
    Levenshtein distance of B and B', and ``pairs/edit_fraction`` the same over the longer of the two.
    ``pairs/length_difference``: len(B') - len(B) in tokens. ``pairs/replacement_logprob``: mean
    log-probability in nats per token of B' under the weights that generated it.
    """
    if not pairs:
        return {}
    distances = np.array([_edit_distance(p) for p in pairs], float)
    lengths = np.array([(len(p.segment), len(p.replacement)) for p in pairs], float)
    metrics = {
        "pairs/eos_fraction": float(np.mean([p.ended for p in pairs])),
        "pairs/edit_distance": float(distances.mean()),
        "pairs/edit_fraction": float((distances / np.maximum(lengths.max(axis=1), 1)).mean()),
        "pairs/length_difference": float((lengths[:, 1] - lengths[:, 0]).mean()),
    }
    logprobs = [p.mean_logprob for p in pairs if not np.isnan(p.mean_logprob)]
    if logprobs:
        metrics["pairs/replacement_logprob"] = float(np.mean(logprobs))
    return metrics


def edit_fraction(pair: PreferencePair) -> float:
    """Token-level edit distance of B and B' over the longer of the two: 0 is the same segment, 1 shares nothing."""
    return _edit_distance(pair) / max(len(pair.segment), len(pair.replacement), 1)


def _edit_distance(pair: PreferencePair) -> int:
    return Levenshtein.distance(pair.segment.tolist(), pair.replacement.tolist())
