"""Slots over shards: even, and neighbours together."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from buffer.slot_layout import LONGEST_RUN, SlotLayout


@given(shards=st.integers(1, 64), each=st.integers(1, 300))
def test_shards_hold_the_same_give_or_take_a_run(shards, each):
    layout = SlotLayout.of(shards * each, shards)
    held = Counter(layout.shard(slot) for slot in range(shards * each))
    assert set(held) == set(range(shards))
    assert max(held.values()) - min(held.values()) <= layout.run


@given(shards=st.integers(1, 64), first=st.integers(0, 10**6))
def test_pairs_that_come_in_together_go_to_two_shards_at_most(shards, first):
    layout = SlotLayout.of(10**6, shards)
    assert len({layout.shard(slot) for slot in range(first, first + LONGEST_RUN)}) <= 2
