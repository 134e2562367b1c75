"""Pairs as a person reads them, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from contracts.pair import PreferencePair, TokenIds

Decode = Callable[[TokenIds], str]
"""From int32 token ids to text."""


def readable(pair: PreferencePair, decode: Decode, step: int) -> dict[str, Any]:
    """One pair, segments between ⟦ and ⟧."""
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
