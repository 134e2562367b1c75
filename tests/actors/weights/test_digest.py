"""A digest tells any change of a word, and what lies where."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from actors.weights import digest as module
from actors.weights.digest import digest


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    bit=st.integers(0, 10**6),
)
@settings(max_examples=100)
def test_no_changed_bit_goes_unseen(seed, size, dtype, bit):
    weight = (100 * torch.randn(size, generator=torch.Generator().manual_seed(seed))).to(dtype)
    before = int(digest(weight))
    as_bytes = weight.view(torch.uint8)
    as_bytes[bit // 8 % len(as_bytes)] ^= 1 << bit % 8
    assert int(digest(weight)) != before


def test_exchanged_words_are_seen():
    weight = torch.randn(3, 50)
    assert int(digest(weight)) != int(digest(weight.flip(1)))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_it_does_not_depend_on_how_much_is_read_at_a_time(chunk):
    weight = torch.randn(5, 31)
    with mock.patch.object(module, "CHUNK", chunk):
        assert int(digest(weight)) == sum(
            int(word) * (2 * place + 1) for place, word in enumerate(weight.view(-1).view(torch.int16))
        )


def test_it_is_of_the_values_in_order_not_of_the_memory():
    weight = torch.randn(4, 6).bfloat16()
    assert int(digest(weight.t())) == int(digest(weight.t().contiguous()))
    assert int(digest(torch.zeros(0))) == 0
    assert digest(torch.tensor(1.5)).shape == ()


def test_beside_the_weight_it_holds_one_chunk_of_products():
    weight = torch.zeros(1 << 20, dtype=torch.bfloat16)
    with mock.patch.object(module, "CHUNK", 1 << 10), HeldBytes() as held:
        digest(weight)
    assert held.largest <= 8 << 10


class HeldBytes(TorchDispatchMode):
    """Notes the largest tensor with memory of its own that an operator returned, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view() and result.dtype == torch.int64:
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result
