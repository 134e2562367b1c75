"""The record: the rejected half and everything counted about it follow from what is stored."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.pair import PreferencePair, ReferenceScore, as_token_ids, offline_pair, supervised

tokens = st.lists(st.integers(0, 9), max_size=6)


def pair_of(prompt, a, b, c, b2, kept) -> PreferencePair:
    return PreferencePair(
        as_token_ids(prompt), as_token_ids([*a, *b, *c]), len(a), len(a) + len(b), as_token_ids(b2), kept
    )


@given(prompt=tokens, a=tokens, b=tokens, c=tokens, b2=tokens, kept=st.booleans())
def test_rejected_is_the_chosen_half_with_its_segment_replaced(prompt, a, b, c, b2, kept):
    pair = pair_of(prompt, a, b, c, b2, kept)
    assert pair.rejected.tolist() == a + b2 + (c if kept else [])
    assert (pair.prefix.tolist(), pair.segment.tolist(), pair.suffix.tolist()) == (a, b, c)
    assert pair.rejected.dtype == np.int32


@given(prompt=tokens, a=tokens, b=tokens, c=tokens, b2=tokens, kept=st.booleans())
def test_cost_counts_shared_tokens_once_and_both_branches(prompt, a, b, c, b2, kept):
    pair = pair_of(prompt, a, b, c, b2, kept)
    assert pair.shared_tokens == len(prompt + a)
    assert pair.cost_tokens == len(prompt) + len(a) + len(b + c) + len(pair.rejected) - len(a)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 5)])
def test_a_cut_outside_the_response_is_rejected(start, end):
    with pytest.raises(ValueError, match=r"outside the chosen response of 4 tokens"):
        PreferencePair(as_token_ids([1]), as_token_ids([1, 2, 3, 4]), start, end, as_token_ids([7]), True)


def test_versions_give_the_oldest_and_the_newest_weights_and_none_for_offline_pairs():
    pair = pair_of([1], [2], [3, 4], [5], [6, 7], True)
    assert (pair.version, pair.newest_version) == (-1, -1)
    generated = PreferencePair(pair.prompt, pair.chosen, 1, 3, pair.replacement, True, versions=as_token_ids([4, 7]))
    assert (generated.version, generated.newest_version) == (4, 7)


@given(prompt=tokens, chosen=tokens, rejected=tokens)
def test_an_offline_pair_keeps_both_halves_and_shares_their_longest_common_prefix(prompt, chosen, rejected):
    pair = offline_pair(5, as_token_ids(prompt), as_token_ids(chosen), as_token_ids(rejected))
    assert pair.chosen.tolist() == chosen
    assert pair.rejected.tolist() == rejected
    assert (pair.index, pair.row) == (5, 5)
    assert chosen[: pair.start] == rejected[: pair.start]
    rest = chosen[pair.start :], rejected[pair.start :]
    assert not all(rest) or rest[0][0] != rest[1][0]


def test_a_supervised_row_has_an_empty_segment_at_its_end():
    row = supervised(3, as_token_ids([1, 2]), as_token_ids([3, 4, 5]))
    assert row.rejected.tolist() == row.chosen.tolist() == [3, 4, 5]
    assert row.cost_tokens == 5


def test_a_reference_is_added_and_nothing_else_changed():
    pair = pair_of([1], [2], [3], [4], [5], True)
    score = ReferenceScore(9, np.arange(5, dtype=np.float32))
    scored = pair.with_reference(score)
    assert pair.reference is None
    assert scored.reference is score
    others = [f.name for f in fields(pair) if f.name != "reference"]
    assert all(getattr(scored, name) is getattr(pair, name) for name in others)
