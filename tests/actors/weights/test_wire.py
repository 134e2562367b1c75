"""What is staged survives the way to a worker as plain data, and a damaged byte does not go unseen."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights.wire import Bucket, Checksum, Entry, StagedUpdate

names = st.text(min_size=1, max_size=9)
entries = st.builds(
    Entry,
    names,
    st.sampled_from(["float32", "bfloat16"]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(0, 2**40),
)
buckets = st.builds(Bucket, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**64 - 1))


@given(update=st.builds(StagedUpdate, st.lists(entries), st.lists(buckets), names))
def test_an_update_is_the_same_after_any_carrier_of_plain_data(update: StagedUpdate):
    assert StagedUpdate.parse(**update.request()) == update
    assert StagedUpdate.parse(**json.loads(json.dumps(update.request()))) == update


def test_a_view_is_the_weight_where_it_lies():
    staged = torch.zeros(128, dtype=torch.uint8)
    entry = Entry("w", "bfloat16", (2, 3), 64)
    entry.view(staged).copy_(torch.arange(6.0).view(2, 3))
    assert entry.end == 76
    assert torch.equal(staged[64:76].view(torch.bfloat16), torch.arange(6.0).bfloat16())
    assert not staged[:64].any() and not staged[76:].any()
    assert Entry("s", "float32", (), 4).view(staged).shape == ()
    assert Entry("e", "float32", (0, 5), 128).view(staged).shape == (0, 5)


def test_a_damaged_byte_is_found_with_its_bucket():
    staged = torch.arange(200, dtype=torch.uint8)
    parts = [(0, 120), (120, 200)]
    sums = [Bucket(first, end, Checksum(staged[first:end].numpy().data).intdigest()) for first, end in parts]
    update = StagedUpdate([Entry("w", "uint8", (200,), 0)], sums)
    assert update.size == 200
    assert torch.equal(update.verified(staged)["w"], staged)
    for byte, where in ((0, "0, 120"), (119, "0, 120"), (120, "120, 200"), (199, "120, 200")):
        staged[byte] += 1
        with pytest.raises(RuntimeError, match=rf"bytes \[{where}\) arrived damaged"):
            update.verified(staged)
        staged[byte] -= 1
