"""Says what the pairs of a batch are like: how far B' is from B, and how old the pairs are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from contracts.pair import PreferencePair


def pair_quality(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Means over a batch of written pairs.

    ``pairs/eos_fraction``: share whose B' ends the response. ``pairs/edit_distance``: token-level
    Levenshtein distance of B and B', and ``pairs/edit_fraction`` the same over the longer of the two.
    ``pairs/length_difference``: len(B') - len(B) in tokens. ``pairs/replacement_logprob``: mean
    log-probability in nats per token of B' under its writer.
    """
    if not pairs:
        return {}
    distances = np.array([Levenshtein.distance(p.segment.tolist(), p.replacement.tolist()) for p in pairs], float)
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


def readable(pair: PreferencePair, decode, step: int) -> dict[str, object]:
    """One pair as a person reads it, segments between ⟦ and ⟧.

    ``decode`` turns int32 token ids into text.
    """
    a, c = decode(pair.prefix), decode(pair.suffix)
    kept = c if pair.suffix_kept else ""
    return {
        "step": step,
        "index": pair.index,
        "row": pair.row,
        "version": pair.version,
        "actor": pair.actor,
        "cut": [pair.start, pair.end],
        "prompt": decode(pair.prompt),
        "chosen": f"{a}⟦{decode(pair.segment)}⟧{c}",
        "rejected": f"{a}⟦{decode(pair.replacement)}⟧{kept}",
        "ended": pair.ended,
        "suffix_kept": pair.suffix_kept,
        "replacement_logprob": None if np.isnan(pair.mean_logprob) else round(pair.mean_logprob, 4),
    }
