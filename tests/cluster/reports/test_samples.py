"""Pairs as a person reads them."""

from __future__ import annotations

import json

from cluster.reports.samples import readable
from contracts.pair import PreferencePair, as_token_ids


def test_a_sample_marks_the_segment_and_drops_a_dropped_suffix() -> None:
    pair = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=as_token_ids([5, 10, 6, 7]),
        start=1,
        end=2,
        replacement=as_token_ids([11]),
        suffix_kept=False,
    )
    shown = readable(pair, lambda ids: " ".join(map(str, ids.tolist())), step=3)
    assert shown["chosen"] == "5⟦ 10⟧ 6 7"
    assert shown["rejected"] == "5⟦ 11⟧"
    assert json.loads(json.dumps(shown))["replacement_logprob"] is None
