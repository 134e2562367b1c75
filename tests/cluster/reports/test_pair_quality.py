"""How far the new segments of a batch are from the original ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.reports.pair_quality import pair_quality
from contracts.pair import PreferencePair, as_token_ids


def pair(segment: list[int], replacement: list[int], **changes: Any) -> PreferencePair:
    chosen = as_token_ids([5, *segment, 6, 7])
    generated = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=chosen,
        start=1,
        end=1 + len(segment),
        replacement=as_token_ids(replacement),
        suffix_kept=True,
        mean_logprob=-1.0,
    )
    return replace(generated, **changes)


def test_pair_quality_reports_edit_distance_length_and_ends() -> None:
    pairs = [pair([10, 11, 12], [10, 12]), pair([10, 11], [20, 21, 22, 23], ended=True, mean_logprob=-3.0)]
    quality = pair_quality(pairs)
    assert quality["pairs/edit_distance"] == (1 + 4) / 2
    assert quality["pairs/edit_fraction"] == pytest.approx((1 / 3 + 4 / 4) / 2)
    assert quality["pairs/length_difference"] == (-1 + 2) / 2
    assert quality["pairs/eos_fraction"] == 0.5
    assert quality["pairs/replacement_logprob"] == -2.0
