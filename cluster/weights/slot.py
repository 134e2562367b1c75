"""One published version as one run of bytes, with a checksum of every bucket of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.weights.digest import digest
from actors.weights.parallel_copy import bytes_of, copy_all, in_parallel
from actors.weights.wire import Bucket, Checksum, Entry, StagedUpdate

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
class Slot:
    """One staged version."""

    shared: bool
    """In anonymous shared memory that engines on this machine map."""
    device: torch.device | None = None
    """Where ``tensors`` puts them (GPU backends)."""
    version: int = -1
    """-1: none."""
    path: str = ""
    """Where other processes of this machine open the shared memory: it has no name and is gone with its last user,
    however a rank ends."""
    bytes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    update: StagedUpdate = field(default_factory=StagedUpdate)
    digests: dict[str, Tensor] = field(default_factory=dict)
    """int64 [] of every weight that ``tensors`` has put on ``device``."""

    def fill(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy the weights in, layer by layer as they come, with a checksum of every bucket.

        Weights that go through ``device`` have none: their receivers go by ``digests``.

        Raises:
            RuntimeError: other weights came than were announced; the slot holds no version then.
        """
        entries, size = _lay_out(metadata)
        self.forget()
        self._reserve(size)
        announced = iter(entries)
        buckets: list[Bucket] = []
        for layer in layers:
            placed = [(_place(next(announced, None), name, tensor), tensor) for name, tensor in layer]
            if self.device is None:
                buckets += in_parallel(self._take, _in_buckets(placed))
            else:
                copy_all((self.bytes[offset : offset + tensor.nbytes], tensor) for offset, tensor in placed)
        if missing := next(announced, None):
            raise RuntimeError(f"weights: {missing.name} was announced and did not come")
        self.update = StagedUpdate(entries, buckets, self.path)
        self.version = version

    def forget(self) -> None:
        """Hold no version until the next is whole."""
        self.version, self.digests = -1, {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by name, in the order in which they were announced."""
        for entry in self.update.entries:
            tensor = entry.view(self.bytes)
            if self.device is not None:
                tensor = tensor.to(self.device, non_blocking=True)
                self.digests[entry.name] = digest(tensor)
            yield entry.name, tensor

    def release(self) -> None:
        if self.path:
            os.close(int(Path(self.path).name))
        self.path, self.bytes = "", torch.zeros(0, dtype=torch.uint8)
        self.forget()

    def _take(self, chunks: list[Chunk]) -> Bucket:
        """Copy chunks that follow each other. What the checksum has read is still in the cache when it is copied."""
        checksum = Checksum()
        for offset, data in chunks:
            checksum.update(data.data)
            np.copyto(self.bytes[offset : offset + len(data)].numpy(), data)
        (first, _), (last, data) = chunks[0], chunks[-1]
        return Bucket(first, last + len(data), checksum.intdigest())

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
        entry = Entry(name, str(dtype).removeprefix("torch."), tuple(shape), offset)
        entries.append(entry)
        offset = _aligned(entry.end)
    return entries, offset


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _place(announced: Entry | None, name: str, tensor: Tensor) -> int:
    """Offset of the weight that comes next.

    Raises:
        RuntimeError: it is another one.
    """
    found = (name, tensor.dtype, tuple(tensor.shape))
    if announced is None or found != (announced.name, announced.torch_dtype, announced.shape):
        expected = f"{announced.name} {announced.dtype} {announced.shape}" if announced else "nothing"
        raise RuntimeError(f"weights: {name} {tensor.dtype} {tuple(tensor.shape)} came where {expected} was announced")
    return announced.offset


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
