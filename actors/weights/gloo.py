"""Broadcasts over TCP from a sender, rank 0, to engines: a gloo group beside whatever others the process has."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import Tensor

STALLED_S = 40.0
"""Longest that one bucket may take. gloo can't be told to stop waiting, so each wait has its limit."""
JOIN_S = 60.0
"""Longest that the members may wait for each other when the group is formed."""


class GlooGroup:
    """A group that is left as soon as ``close`` returns, whoever still refers to it."""

    def __init__(self, address: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        """Join; rank 0 listens at the address.

        Args:
            timeout_s: longest wait for another member, where the limits above are not shorter.
        """
        joining = timedelta(seconds=min(timeout_s, JOIN_S))
        store = torch.distributed.TCPStore(
            address, port, world_size, rank == 0, timeout=joining, wait_for_workers=False
        )
        self._group: torch.distributed.ProcessGroup | None = torch.distributed.ProcessGroupGloo(  # type: ignore[assignment]  # the stub knows no base
            store, rank, world_size, joining
        )
        self._options = torch.distributed.BroadcastOptions()
        self._options.rootRank = 0
        self._options.timeout = timedelta(seconds=min(timeout_s, STALLED_S))

    def broadcast(self, data: Tensor) -> None:
        """From rank 0 to all, in place.

        Raises:
            RuntimeError: a member is gone or has stalled, or the group is closed. It is of no use afterwards.
        """
        if self._group is None:
            raise RuntimeError("weights: the gloo group is closed")
        self._group.broadcast([data], self._options).wait()

    def close(self) -> None:
        """Members that wait for this one fail at once."""
        self._group = None
