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
    assert shown["chosen"] == "5⟦10⟧6 7"
    assert shown["rejected"] == "5⟦11⟧"
    assert json.loads(json.dumps(shown))["replacement_logprob"] is None


def test_a_sample_says_how_old_its_weights_were_and_how_much_changed() -> None:
    pair = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=as_token_ids([5, 10, 6, 7]),
        start=1,
        end=3,
        replacement=as_token_ids([10, 8, 9, 9]),
        suffix_kept=True,
        versions=as_token_ids([4, 4, 5, 5]),
    )
    shown = readable(pair, lambda ids: "", step=7)
    assert shown["age"] == 2  # the batch of step 7 is drawn when 6 steps are done
    assert shown["edit_fraction"] == 0.75
