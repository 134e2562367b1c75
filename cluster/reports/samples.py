"""Pairs as a person reads them, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cluster.reports.pair_quality import edit_fraction
from contracts.pair import PreferencePair, TokenIds

Decode = Callable[[TokenIds], str | list[str]]
"""From int32 token ids to text, as a tokenizer's ``decode``: of one sequence it gives one text."""


def readable(pair: PreferencePair, decode: Decode, step: int, margin: float | None = None) -> dict[str, Any]:
    """One pair, segments between ⟦ and ⟧.

    ``age``: optimizer steps that the weights behind the pair were old in the batch of ``step``; None for offline pairs.
    ``margin``: the pair's reward margin in that step.
    """

    def text(ids: TokenIds) -> str:
        return str(decode(ids))

    a, c = text(pair.prefix), text(pair.suffix)
    kept = c if pair.suffix_kept else ""
    return {
        "step": step,
        "index": pair.index,
        "row": pair.row,
        "version": pair.version,
        "age": step - 1 - pair.version if pair.version >= 0 else None,
        "actor": pair.actor,
        "cut": [pair.start, pair.end],
        "prompt": text(pair.prompt),
        "chosen": f"{a}⟦{text(pair.segment)}⟧{c}",
        "rejected": f"{a}⟦{text(pair.replacement)}⟧{kept}",
        "ended": pair.ended,
        "suffix_kept": pair.suffix_kept,
        "margin": None if margin is None else round(margin, 4),
        "edit_fraction": round(edit_fraction(pair), 4),
        "replacement_logprob": None if np.isnan(pair.mean_logprob) else round(pair.mean_logprob, 4),
    }
