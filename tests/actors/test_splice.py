"""Splicing: what the rejected half is made of in every case of end-of-sequence, and what is no pair."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import AfterEos
from actors.plan import PlanItem
from actors.splice import check, context, splice
from actors.token_table import Row
from buffer.messages import Outcome
from contracts.pair import PreferencePair, as_token_ids

EOS = 2
words = st.lists(st.integers(3, 6), max_size=5)
some = st.lists(st.integers(3, 6), min_size=1, max_size=5)


def case(a, b, c, prompt=(9, 8)) -> tuple[Row, PlanItem]:
    row = Row(as_token_ids(prompt), as_token_ids([*a, *b, *c]))
    return row, PlanItem(index=7, row=4, epoch=0, start=len(a), end=len(a) + len(b), sampling_seed=1)


def spliced(row: Row, item: PlanItem, replacement: list[int], ends: set[int], after_eos: AfterEos) -> PreferencePair:
    outcome, pair = splice(row, item, replacement, ends, after_eos)
    assert outcome is Outcome.INSERTED and pair is not None
    return pair


@st.composite
def replacements(draw):
    """(A, B, C, B' without its end, whether B' ends with end-of-sequence), B' no longer than B."""
    a, b, c = draw(words), draw(some), draw(words)
    ended = draw(st.booleans())
    new = draw(st.lists(st.integers(3, 6), min_size=0 if ended else 1, max_size=len(b) - ended))
    return a, b, c, new, ended


@pytest.mark.parametrize("after_eos", ["drop", "keep", "reject"])
@given(case_of=replacements())
def test_the_rejected_half_is_what_the_method_says_in_every_case(after_eos, case_of):
    a, b, c, new, ended = case_of
    row, item = case(a, b, c)
    versions = np.arange(len(new) + ended, dtype=np.int32)
    replacement = [*new, EOS] if ended else new
    outcome, pair = splice(row, item, replacement, {EOS}, after_eos, actor="x", versions=versions, mean_logprob=-1.5)
    early = ended and c
    if not ended:
        rejected, kept = a + new + c, bool(c)
    elif early and after_eos == "keep":
        rejected, kept = a + new + c, True
    else:
        rejected, kept = [*a, *new, EOS], False
    if early and (after_eos == "reject" or (after_eos == "keep" and not new)):
        assert (outcome, pair) == (Outcome.DISCARDED, None)
    elif rejected == a + b + c:
        assert (outcome, pair) == (Outcome.IDENTICAL, None)
    else:
        assert outcome is Outcome.INSERTED and pair is not None
        assert pair.rejected.tolist() == rejected
        assert pair.chosen.tolist() == a + b + c
        assert pair.prompt.tolist() == [9, 8]
        assert (pair.suffix_kept, pair.ended) == (kept, ended)
        assert (pair.prefix.tolist(), pair.segment.tolist(), pair.suffix.tolist()) == (a, b, c)
        assert (pair.index, pair.row, pair.actor, pair.mean_logprob) == (7, 4, "x", -1.5)
        assert pair.versions.tolist() == list(range(len(pair.replacement)))


def test_suffix_is_dropped_after_end_of_sequence():
    row, item = case([3], [4, 5], [6, EOS])
    pair = spliced(row, item, [7, EOS], {EOS}, "drop")
    assert pair.rejected.tolist() == [3, 7, EOS]


def test_the_responses_own_end_is_no_early_end():
    row, item = case([3], [4, EOS], [])
    for after_eos in get_args(AfterEos):
        assert spliced(row, item, [5, EOS], {EOS}, after_eos).rejected.tolist() == [3, 5, EOS]


def test_an_equal_segment_is_identical_unless_its_end_drops_a_suffix():
    row, item = case([3], [4, 5], [6])
    assert splice(row, item, [4, 5], {EOS}, "drop") == (Outcome.IDENTICAL, None)
    row, item = case([3], [4, EOS], [6])
    assert spliced(row, item, [4, EOS], {EOS}, "drop").rejected.tolist() == [3, 4, EOS]


def test_any_of_several_end_tokens_ends_a_segment():
    row, item = case([3], [4, 5], [6])
    assert spliced(row, item, [11], {EOS, 11}, "drop").rejected.tolist() == [3, 11]


def test_a_segment_longer_than_the_original_is_rejected():
    row, item = case([3], [4, 5], [6])
    with pytest.raises(ValueError, match="index 7: 3 tokens were generated for a segment of 2"):
        splice(row, item, [3, 4, 5], {EOS}, "drop")


@pytest.mark.parametrize("replacement", [[EOS, 4], [EOS, EOS]])
def test_a_segment_that_goes_on_after_its_end_is_rejected(replacement):
    row, item = case([3], [4, 5], [6])
    with pytest.raises(ValueError, match="index 7: the segment goes on after an end-of-sequence token"):
        splice(row, item, replacement, {EOS}, "drop")


@given(a=words, b=some, c=words)
def test_the_engine_continues_prompt_and_prefix(a, b, c):
    row, item = case(a, b, c)
    assert context(row, item).tolist() == [9, 8, *a]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": as_token_ids([9])},
        {"chosen": as_token_ids([3, 4, 5, 6, 6])},
        {"chosen": as_token_ids([3, 4, 5, 7])},
        {"chosen": as_token_ids([8, 4, 5, 6])},
    ],
)
def test_a_pair_that_is_not_its_rows_is_rejected(change):
    row, item = case([3], [4, 5], [6])
    pair = spliced(row, item, [7], {EOS}, "drop")
    check(pair, row)
    with pytest.raises(ValueError, match="index 7: the pair does not share prompt, prefix or suffix with row 4"):
        check(replace(pair, **change), row)
