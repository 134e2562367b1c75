"""Kernels that give the same numbers every time, for GPU runs in lockstep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from contracts.errors import UserError, first_line


def use_deterministic_kernels() -> None:
    """From now on, kernels of this process do not depend on timing; FlashAttention's backward pass is one of them.

    torch raises a RuntimeError in an operation that has no such kernel, see ``naming_the_switch``.
    """
    # cuBLAS wants a workspace of fixed size, and reads this with the first product.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # Meant to make reads of uninitialized memory repeatable, and costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def naming_the_switch() -> Iterator[None]:
    """Raises:
    UserError: the model uses an operation without a deterministic kernel, as mixtures of experts do.
    """
    try:
        yield
    except RuntimeError as error:
        missing, found, _ = first_line(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(
            f"deterministic true: the model uses {missing}, which has no deterministic kernel: set deterministic false"
        ) from error
