"""Holds published weights as one run of bytes, twice: one may be sent while the next is staged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from actors.cores import copy_all, in_parallel
from actors.digest import digest
from actors.receive import StagedUpdate, checksum

ALIGNMENT = 64
BUCKET_BYTES = 8 << 20

Metadata = list[tuple[str, torch.dtype, tuple[int, ...]]]
"""(name, dtype, shape) of every weight, in the order in which they come."""
Layer = Sequence[tuple[str, Tensor]]
"""Weights that may be read at the same time."""


@dataclass
class Slot(WeightSource):
    """One staged version. As vLLM's ``WeightSource`` it yields the staged tensors."""

    shared: bool
    """In anonymous shared memory that engines on this machine map."""
    device: torch.device | None = None
    """Where iteration puts the tensors (GPU backends)."""
    version: int = -1
    path: str = ""
    """Where other processes of this machine open the shared memory: it has no name and is gone with its last user,
    however a rank ends."""
    bytes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    update: StagedUpdate = field(default_factory=lambda: StagedUpdate([], []))
    digests: dict[str, Tensor] = field(default_factory=dict)
    """int64 [] of every weight that iteration has put on ``device``."""

    def fill(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy the weights in, layer by layer as they come, then take a checksum of every bucket.

        Weights that go through ``device`` have none: their receivers go by ``digests``.
        """
        entries, size = _lay_out(metadata)
        self._reserve(size)
        self.version, self.digests = -1, {}
        announced = iter(entries)
        for layer in layers:
            copies = []
            for name, tensor in layer:
                expected, dtype, shape, offset = next(announced, ("nothing", "", (), 0))
                if (name, str(tensor.dtype), tuple(tensor.shape)) != (expected, f"torch.{dtype}", shape):
                    raise RuntimeError(
                        f"weights: {name} {tensor.dtype} {tuple(tensor.shape)} came where {expected} {dtype} {shape} "
                        "was announced"
                    )
                copies.append((self.bytes[offset : offset + tensor.nbytes], tensor))
            copy_all(copies)
        if missing := next(announced, None):
            raise RuntimeError(f"weights: {missing[0]} was announced and did not come")
        starts = range(0, size, BUCKET_BYTES) if self.device is None else ()
        buckets = in_parallel(self._bucket, [(first, min(first + BUCKET_BYTES, size)) for first in starts])
        self.update = StagedUpdate(entries, buckets, self.path)
        self.version = version

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, getattr(torch, dtype), shape) for name, dtype, shape, _ in self.update.entries]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, dtype_name, shape, offset in self.update.entries:
            dtype = getattr(torch, dtype_name)
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            tensor = self.bytes[offset : offset + count].view(dtype).view(*shape)
            if self.device is not None:
                tensor = tensor.to(self.device, non_blocking=True)
                self.digests[name] = digest(tensor)
            yield name, tensor

    def release(self) -> None:
        if self.path:
            os.close(int(Path(self.path).name))
            self.path, self.bytes = "", torch.zeros(0, dtype=torch.uint8)

    def _bucket(self, bounds: tuple[int, int]) -> tuple[int, int, int]:
        return *bounds, checksum(self.bytes[slice(*bounds)])

    def _reserve(self, size: int) -> None:
        if len(self.bytes) == size:
            return
        if not self.shared:
            self.bytes = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            return
        self.release()
        handle = os.memfd_create("sapo-weights")
        os.ftruncate(handle, size)
        self.path = f"/proc/{os.getpid()}/fd/{handle}"
        self.bytes = torch.from_file(self.path, shared=True, size=size, dtype=torch.uint8)


def _lay_out(metadata: Metadata) -> tuple[list[tuple[str, str, tuple[int, ...], int]], int]:
    """Entries with aligned offsets, and the size of all in bytes."""
    entries, offset = [], 0
    for name, dtype, shape in metadata:
        entries.append((name, str(dtype).removeprefix("torch."), tuple(shape), offset))
        offset += -(-int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return entries, offset
