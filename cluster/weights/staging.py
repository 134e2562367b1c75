"""Holds published weights as one run of bytes, twice: one may be sent while the next is staged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from actors.weights.digest import digest
from actors.weights.parallel_copy import bytes_of, copy_all, in_parallel
from actors.weights.receivers import Bucket, Checksum, Entry, StagedUpdate

ALIGNMENT = 64
BUCKET_BYTES = 8 << 20
CHUNK_BYTES = 2 << 20
"""Read for its checksum and then copied, out of the cache."""

Metadata = list[tuple[str, torch.dtype, tuple[int, ...]]]
"""(name, dtype, shape) of every weight, in the order in which they come."""
Layer = Sequence[tuple[str, Tensor]]
"""Weights that may be read at the same time."""
Chunk = tuple[int, NDArray[np.uint8]]
"""(offset, bytes)."""


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
        """Copy the weights in, layer by layer as they come, with a checksum of every bucket.

        Weights that go through ``device`` have none: their receivers go by ``digests``.

        Raises:
            RuntimeError: other weights came than were announced; the slot holds no version then.
        """
        entries, size = _lay_out(metadata)
        self._reserve(size)
        self.version, self.digests = -1, {}
        announced = iter(entries)
        buckets: list[Bucket] = []
        for layer in layers:
            placed = [(_place(next(announced, None), name, tensor), tensor) for name, tensor in layer]
            if self.device is None:
                buckets += in_parallel(self._take, _in_buckets(placed))
            else:
                copy_all((self.bytes[offset : offset + tensor.nbytes], tensor) for offset, tensor in placed)
        if missing := next(announced, None):
            raise RuntimeError(f"weights: {missing[0]} was announced and did not come")
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

    def _take(self, chunks: list[Chunk]) -> Bucket:
        """Copy chunks that follow each other. What the checksum has read is still in the cache when it is copied."""
        checksum = Checksum()
        for offset, data in chunks:
            checksum.update(data)
            np.copyto(self.bytes[offset : offset + len(data)].numpy(), data)
        (first, _), (last, data) = chunks[0], chunks[-1]
        return first, last + len(data), checksum.intdigest()

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


def _lay_out(metadata: Metadata) -> tuple[list[Entry], int]:
    """Entries with aligned offsets, and the size of all in bytes."""
    entries, offset = [], 0
    for name, dtype, shape in metadata:
        entries.append((name, str(dtype).removeprefix("torch."), tuple(shape), offset))
        offset = _aligned(offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return entries, offset


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _place(announced: Entry | None, name: str, tensor: Tensor) -> int:
    """Offset of the weight that comes next.

    Raises:
        RuntimeError: it is another one.
    """
    expected, dtype, shape, offset = announced or ("nothing", "", (), 0)
    if (name, str(tensor.dtype), tuple(tensor.shape)) != (expected, f"torch.{dtype}", shape):
        raise RuntimeError(
            f"weights: {name} {tensor.dtype} {tuple(tensor.shape)} came where {expected} {dtype} {shape} was announced"
        )
    return offset


def _in_buckets(placed: Iterable[tuple[int, Tensor]]) -> Iterator[list[Chunk]]:
    """The bytes of weights that follow each other, in buckets of BUCKET_BYTES or less."""
    bucket: list[Chunk] = []
    for offset, chunk in _chunks(placed):
        bucket.append((offset, chunk))
        if offset + len(chunk) - bucket[0][0] > BUCKET_BYTES - CHUNK_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _chunks(placed: Iterable[tuple[int, Tensor]]) -> Iterator[Chunk]:
    """All bytes, with the zeros that align the next weight."""
    for offset, tensor in placed:
        data = bytes_of(tensor.cpu().contiguous()).numpy()
        end = offset + len(data)
        for start in range(0, len(data), CHUNK_BYTES):
            yield offset + start, data[start : start + CHUNK_BYTES]
        if gap := _aligned(end) - end:
            yield end, np.zeros(gap, np.uint8)
