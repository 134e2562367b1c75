"""Copies by several threads: every byte arrives, whatever the sizes, dtypes and layouts."""

from __future__ import annotations

import pytest
import torch

from actors.weights.parallel_copy import PART_BYTES, THREADS, copy_all, in_parallel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("elements", [[1], [3, 0, 5], [PART_BYTES + 1, 7], [PART_BYTES // 2, 3 * PART_BYTES + 13]])
def test_every_byte_arrives(dtype: torch.dtype, elements: list[int]) -> None:
    sources = [torch.arange(n).remainder(251).to(dtype) for n in elements]
    targets = [torch.full_like(source, 252) for source in sources]
    copy_all(zip(targets, sources, strict=True))
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))


def test_a_strided_source_is_copied_in_its_order() -> None:
    source = torch.arange(2 * PART_BYTES, dtype=torch.int32).view(2, PART_BYTES).t()
    target = torch.zeros(source.shape, dtype=torch.int32)
    copy_all([(target, source)])
    assert torch.equal(target, source)


def test_a_target_that_a_copy_would_stand_in_for_is_rejected() -> None:
    with pytest.raises(RuntimeError):
        copy_all([(torch.zeros(3, 2).t(), torch.ones(2, 3))])


def test_another_size_is_rejected() -> None:
    with pytest.raises(ValueError):
        copy_all([(torch.zeros(PART_BYTES + 8, dtype=torch.uint8), torch.zeros(PART_BYTES, dtype=torch.uint8))])


def test_results_are_in_order_and_the_first_error_comes_out() -> None:
    def odd(number: int) -> int:
        if number % 2 == 0:
            raise KeyError(number)
        return 2 * number

    assert in_parallel(odd, range(1, 20 * THREADS, 2)) == list(range(2, 40 * THREADS, 4))
    with pytest.raises(KeyError, match="4"):
        in_parallel(odd, [1, 4, 3, 6])
