"""Segment by segment on CPU gives what attention computed query by query gives."""

from __future__ import annotations

import pytest
import torch

from learner.model import attention_cpu
from learner.model.attention_cpu import attend_by_segment
from learner.model.packing import RowLayout, Segment
from support.row_attention import SEGMENTS, WINDOWS, check_against_brute_force, states


@pytest.mark.parametrize("small", [0, 9, 128])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_segments_on_cpu_equal_brute_force(monkeypatch, window, softcap, key_heads, small):
    """Each block alone, some together, all together."""
    monkeypatch.setattr(attention_cpu, "SMALL", small)
    check_against_brute_force(attend_by_segment, window, softcap, key_heads)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_segments_result_does_not_depend_on_the_rest_of_the_row(softcap):
    q, k, v = (t.detach() for t in states())
    whole = attend_by_segment(q, k, v, RowLayout(SEGMENTS), None, 0.3, softcap, 0.0)
    q, k, v = (t[:, :, :21] for t in (q, k, v))
    assert torch.equal(attend_by_segment(q, k, v, RowLayout(SEGMENTS[:3]), None, 0.3, softcap, 0.0), whole[:, :, :21])


def test_a_window_shorter_than_the_row_computes_only_what_it_sees():
    """Work is tokens x window: no block of queries meets more than two windows of keys."""
    blocks = [b for s in (Segment(0, 1000, 0, 0), Segment(1000, 1300, 0, 1000)) for b in attention_cpu._blocks(s, 64)]
    assert sum(b.stop - b.start for b in blocks) == 1300
    assert max(b.keys for b in blocks) <= 128


def test_derived_masks_are_made_once_for_all_layers():
    q, k, v = states()
    layout = RowLayout(SEGMENTS)
    attend_by_segment(q, k, v, layout, 3, 0.3, None, 0.0)
    made = {name: id(value) for name, value in layout.cache.items()}
    attend_by_segment(q, k, v, layout, 3, 0.3, None, 0.0)
    assert {name: id(value) for name, value in layout.cache.items()} == made
