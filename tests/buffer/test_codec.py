"""The encoding: every field comes back, in few bytes, without copies."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.codec import HEADER, decode, encode
from contracts.pair import PreferencePair, ReferenceScore, as_token_ids

tokens = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9).map(as_token_ids)
numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=32)
references = st.none() | st.builds(
    ReferenceScore, numbers, st.lists(floats, min_size=5, max_size=5).map(lambda x: np.array(x, np.float32))
)


@st.composite
def pairs(draw) -> PreferencePair:
    chosen = draw(tokens)
    start, end = sorted((draw(st.integers(0, len(chosen))), draw(st.integers(0, len(chosen)))))
    return PreferencePair(
        draw(tokens),
        chosen,
        start,
        end,
        draw(tokens),
        draw(st.booleans()),
        draw(numbers),
        draw(numbers),
        draw(st.text(max_size=12)),
        draw(tokens),
        draw(st.floats()),
        draw(st.booleans()),
        draw(references),
    )


def assert_same(a: PreferencePair, b: PreferencePair) -> None:
    for field in fields(PreferencePair):
        if field.name != "reference":
            left, right = getattr(a, field.name), getattr(b, field.name)
            assert type(left) is type(right)
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert getattr(left, "dtype", None) == getattr(right, "dtype", None)
    assert (a.reference is None) == (b.reference is None)
    if a.reference and b.reference:
        assert a.reference.version == b.reference.version
        assert b.reference.logps.dtype == np.float32
        np.testing.assert_array_equal(a.reference.logps, b.reference.logps)


@given(pair=pairs())
def test_every_field_comes_back(pair):
    assert_same(pair, decode(encode(pair)))


@given(pair=pairs())
def test_encoding_again_gives_the_same_bytes(pair):
    assert encode(decode(encode(pair))) == encode(pair)


def test_a_pair_takes_a_hundred_bytes_more_than_its_tokens_however_long_it_is():
    for prompt, response, segment in ((512, 512, 256), (10, 10, 4)):
        pair = PreferencePair(
            as_token_ids(range(prompt)),
            as_token_ids(range(response)),
            0,
            segment,
            as_token_ids(range(segment)),
            True,
            actor="actor-12",
            versions=np.full(segment, 3, np.int32),
            reference=ReferenceScore(1, np.zeros(5, np.float32)),
        )
        assert len(encode(pair)) <= 4 * (prompt + response + segment) + 100


def test_decoded_arrays_are_aligned_views_that_nobody_can_write_to():
    payload = encode(PreferencePair(as_token_ids([1, 2]), as_token_ids([3, 4, 5]), 1, 2, as_token_ids([6]), True))
    pair = decode(payload)
    assert HEADER.size % 4 == 0
    for array in (pair.prompt, pair.chosen, pair.replacement):
        assert array.flags.aligned
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(payload, np.uint8))


def test_reference_scores_of_other_regions_are_rejected():
    pair = PreferencePair(as_token_ids([1]), as_token_ids([2]), 0, 1, as_token_ids([3]), True, index=8)
    with pytest.raises(ValueError, match="pair 8: 4 reference scores for 5 regions"):
        encode(pair.with_reference(ReferenceScore(0, np.zeros(4, np.float32))))
