"""Broadcasts over TCP from a sender, rank 0, to engines: a gloo group beside whatever others the process has."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import Tensor


def gloo_group(address: str, port: int, rank: int, world_size: int, timeout_s: float) -> torch.distributed.ProcessGroup:
    """Join the group; rank 0 listens at the address."""
    timeout = timedelta(seconds=timeout_s)
    store = torch.distributed.TCPStore(address, port, world_size, rank == 0, timeout=timeout, wait_for_workers=False)
    return torch.distributed.ProcessGroupGloo(store, rank, world_size, timeout)  # type: ignore[return-value]  # the stub knows no base


def broadcast(group: torch.distributed.ProcessGroup, data: Tensor) -> None:
    """From rank 0 to all, in place."""
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([data], options).wait()
