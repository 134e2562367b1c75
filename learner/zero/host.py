"""What a rank on a GPU takes of its node: pinned memory, and cores for an optimizer on the host."""

from __future__ import annotations

import os
import socket
import zlib

import torch
import torch.distributed as dist

ROUNDED_UP_TO_MB = 16
"""Larger blocks of pinned memory have the size that was asked for."""


def pin_without_rounding() -> None:
    """From now on. torch rounds pinned blocks up to powers of two, so that 131 GiB of staged weights took 256 GiB."""
    before = torch._C._accelerator_getAllocatorSettings()
    ours = f"pinned_max_round_threshold_mb:{ROUNDED_UP_TO_MB}"
    torch._C._accelerator_setAllocatorSettings(f"{before},{ours}" if before else ours)


def cores_of_this_rank(device: torch.device) -> int:
    """An even share of the cores that this node's ranks may use, one at least. All ranks together.

    Ray sets the threads of an actor to the cores that it reserves, one for a rank, because its work is on the GPU. An
    optimizer on the host runs while all of a node's ranks are at it, and nothing of theirs needs cores then.
    """
    mine = torch.tensor(zlib.crc32(socket.gethostname().encode()), dtype=torch.int64, device=device)
    nodes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(nodes, mine)
    ranks_here = sum(int(node) == int(mine) for node in nodes)
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)
