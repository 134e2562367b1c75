"""How senders are made for the backends that need a GPU, as far as that can be seen without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.weights import senders
from cluster.weights.client import ActorsClient
from cluster.weights.staging import StagedVersions


def staged(*sizes: int) -> StagedVersions:
    versions = StagedVersions(shared=False)
    weights = [(f"w{size}", torch.zeros(size)) for size in sizes]
    versions.stage(1, [(name, w.dtype, tuple(w.shape)) for name, w in weights], [weights])
    return versions


@pytest.mark.parametrize(("sizes", "buffer"), [((10, 20), 256), ((10, 100, 20), 400)])
def test_the_buffer_that_goes_back_and_forth_over_ipc_holds_the_largest_weight(monkeypatch, sizes, buffer):
    made: list[Any] = []
    monkeypatch.setattr(senders, "DEFAULT_PACKED_BUFFER_SIZE_BYTES", 256)
    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda init, **_: made.append(init))
    client = ActorsClient({}, 1, 1.0, staged(*sizes))
    with client.staged.sending():
        senders.connect("ipc", client)
    assert (made[0].packed, made[0].packed_buffer_size_bytes) == (True, buffer)
