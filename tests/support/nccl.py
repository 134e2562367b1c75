"""A library with NCCL's calls whose communicators are queues: what vLLM's ``PyNcclCommunicator`` needs of it.

As in NCCL, a broadcast waits for the others without an end, an abort lets the waiting go without an error, and what is
not aborted stays open.
"""

from __future__ import annotations

import ctypes
import queue
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

WAIT_S = 0.01


class Store:
    """The group's store; ``gone`` with the process of the sender."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.gone = False

    def set(self, key: str, value: str) -> None:
        self._reach()
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        self._reach()
        return all(key in self.values for key in keys)

    def _reach(self) -> None:
        if self.gone:
            raise RuntimeError("Connection reset by peer")


class Group:
    """One group: rank 0 broadcasts to the others, who take one broadcast at a time."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.store = world_size, Store()
        self.wires = [queue.Queue[bytes](1) for _ in range(world_size)]

    def join(self, library: FakeNccl, rank: int) -> PyNcclCommunicator:
        """As vLLM's constructor leaves it."""
        communicator = PyNcclCommunicator.__new__(PyNcclCommunicator)
        parts: dict[str, Any] = {
            "rank": rank,
            "world_size": self.world_size,
            "group": SimpleNamespace(store=self.store),
            "nccl": library,
            "available": True,
            "disabled": False,
            "device": torch.device("cpu"),
            "comm": library.opened(self, rank),
        }
        vars(communicator).update(parts)
        return communicator


class FakeNccl:
    """Stands for ``NCCLLibrary``."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[Group, int]] = {}
        """By handle."""
        self.count = 0
        """Communicators opened so far."""

    def opened(self, group: Group, rank: int) -> int:
        self.count += 1
        self.open[self.count] = group, rank
        return self.count

    def ncclCommAbort(self, comm: int) -> None:
        assert comm in self.open, "aborted twice: NCCL would free it twice"
        del self.open[comm]

    def ncclBroadcast(self, send: Any, receive: Any, count: int, dtype: int, root: int, comm: int, stream: Any) -> None:
        assert comm in self.open, "used after it was aborted"
        group, rank = self.open[comm]
        size = count * next(t.itemsize for t in (torch.uint8, torch.bfloat16, torch.float32) if _code(t) == dtype)
        if rank == root:
            data = ctypes.string_at(send.value, size)
            for other in range(1, group.world_size):
                self._wait(comm, lambda other=other: group.wires[other].put(data, timeout=WAIT_S))
        elif (data := self._wait(comm, lambda: group.wires[rank].get(timeout=WAIT_S))) is not None:
            ctypes.memmove(receive.value, data, size)

    def _wait(self, comm: int, attempt: Any) -> Any:
        while comm in self.open:
            try:
                return attempt()
            except (queue.Full, queue.Empty):
                continue
        return None


def _code(dtype: torch.dtype) -> int:
    from vllm.distributed.device_communicators.pynccl_wrapper import ncclDataTypeEnum

    return ncclDataTypeEnum.from_torch(dtype)


def one_stream() -> Any:
    """In place of CUDA's current stream."""
    return mock.patch.object(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
