"""Deterministic kernels are switched on for the whole process, and what has none is named with the switch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from contracts.errors import UserError
from learner.zero.determinism import naming_the_switch
from support.paths import REPOSITORY


def test_the_switch_reaches_torch_and_cublas():
    code = (
        "import os, torch; from learner.zero.determinism import use_deterministic_kernels as use; use(); "
        "print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), "
        "torch.utils.deterministic.fill_uninitialized_memory, os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "False", ":4096:8"]


def test_an_operation_without_such_a_kernel_is_told_with_what_to_set(monkeypatch):
    torch.use_deterministic_algorithms(True)
    try:
        line = r"^deterministic true: the model uses put_.*: set deterministic false$"
        with pytest.raises(UserError, match=line), naming_the_switch():
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="out of memory"), naming_the_switch():
        raise RuntimeError("out of memory")
