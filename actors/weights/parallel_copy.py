"""Weights on CPU are moved by several threads: one alone uses half of what memory gives, and the rest waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(4, os.cpu_count() or 1)
"""Four fill most machines' memory channels; more would be taken from what else runs."""
PART_BYTES = 4 << 20
"""What one thread copies at a time; all of a smaller copy is done before another thread has woken up."""


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results in order. ``work`` must let go of the interpreter's lock, as copies, checksums and oneDNN do.

    Raises:
        Exception: what ``work`` raised first, in the order of the items.
    """
    items = list(items)
    if len(items) < 2:  # done before another thread has woken up
        return [work(item) for item in items]
    return list(_pool().map(work, items))


def copy_all(copies: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Each first tensor, contiguous on CPU, takes the bytes of the second, which has as many.

    Raises:
        RuntimeError: a first tensor is not contiguous.
        ValueError: the sizes differ.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for target, source in copies:
        into, data = bytes_of(target), bytes_of(source.contiguous())
        if data.device.type == "cpu":
            parts += zip(into.split(PART_BYTES), data.split(PART_BYTES), strict=True)
        else:
            into.copy_(data)
    if sum(len(target) for target, _ in parts) > PART_BYTES:
        in_parallel(_copy, parts)
    else:
        for part in parts:
            _copy(part)


def _copy(part: tuple[Tensor, Tensor]) -> None:
    # numpy's is the C library's, which can write past the caches (from the size on that the process was started with).
    np.copyto(part[0].numpy(), part[1].numpy())


def bytes_of(tensor: Tensor) -> Tensor:
    """uint8 [bytes]: a view or an error, never a copy, as what is written to it must reach the tensor.

    Raises:
        RuntimeError: the tensor is not contiguous.
    """
    return tensor.detach().view(-1).view(torch.uint8)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "weights")
