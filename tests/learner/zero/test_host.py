"""A node's cores are shared by its ranks, and torch is told not to round pinned memory up."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from learner.zero import host


@pytest.mark.contract
@pytest.mark.parametrize("before", ["", "expandable_segments:True"])
def test_torch_takes_the_setting_beside_a_users_own(before):
    code = "import torch; from learner.zero.host import pin_without_rounding as p; p(); "
    code += "print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTORCH_ALLOC_CONF": before}
    )
    ours = "pinned_max_round_threshold_mb:16"
    assert done.stdout.strip() == (f"{before},{ours}" if before else ours)


@pytest.mark.parametrize(("here", "elsewhere", "share"), [(1, 0, 16), (8, 8, 2), (3, 1, 5), (40, 0, 1)])
def test_cores_are_shared_by_the_ranks_of_a_node(monkeypatch, here, elsewhere, share):
    def all_gather(found: list[torch.Tensor], mine: torch.Tensor) -> None:
        for i, node in enumerate(found):
            node.copy_(mine if i < here else torch.tensor(i))

    def affinity(_pid: int) -> Any:
        return set(range(16))

    monkeypatch.setattr(host.dist, "get_world_size", lambda: here + elsewhere)
    monkeypatch.setattr(host.dist, "all_gather", all_gather)
    monkeypatch.setattr(host.os, "sched_getaffinity", affinity)
    assert host.cores_of_this_rank(torch.device("cpu")) == share
