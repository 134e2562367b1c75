"""The wire format of a publication: one run of bytes, what lies where in it, and a checksum of every bucket of it.

Knows neither vLLM nor Ray. The sender's end fills it (cluster/weights/slot.py), receivers.py reads it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import xxhash
from torch import Tensor

from actors.weights.parallel_copy import in_parallel

Checksum = xxhash.xxh3_64
"""64 bits of bytes, at the speed of memory, where zlib's checksums take a third of a publication."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight among the staged bytes."""

    name: str
    dtype: str
    """As torch names it, without ``torch.``."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte."""

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def view(self, staged: Tensor) -> Tensor:
        """The weight in ``staged``, uint8 [bytes], without a copy."""
        return staged[self.offset : self.end].view(self.torch_dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Bytes that are verified together."""

    first: int
    end: int
    """The byte after the last."""
    checksum: int
    """``Checksum`` of the bytes [first, end)."""


@dataclass(frozen=True)
class StagedUpdate:
    """Where the bytes of one publication are and what they are."""

    entries: list[Entry] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    """Together they are all bytes, in order."""
    path: str = ""
    """Where the shared memory is opened (``shm``)."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.buckets[-1].end if self.buckets else 0

    def request(self) -> dict[str, Any]:
        """As what vLLM carries to its workers: lists, dicts, numbers and text."""
        return asdict(self)

    @classmethod
    def parse(cls, entries: list[dict[str, Any]], buckets: list[dict[str, Any]], path: str) -> StagedUpdate:
        """From the parts of a ``request``."""
        # A carrier may have made lists of tuples.
        placed = [Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries]
        return cls(placed, [Bucket(**bucket) for bucket in buckets], path)

    def verified(self, staged: Tensor) -> dict[str, Tensor]:
        """Views of the weights in ``staged``, uint8 [size], by name.

        Raises:
            RuntimeError: the bytes do not have their checksums.
        """
        sums = in_parallel(lambda b: Checksum(staged[b.first : b.end].numpy().data).intdigest(), self.buckets)
        for bucket, found in zip(self.buckets, sums, strict=True):
            if found != bucket.checksum:
                raise RuntimeError(
                    f"weights: bytes [{bucket.first}, {bucket.end}) arrived damaged: checksum {found} is not "
                    f"{bucket.checksum}"
                )
        return {entry.name: entry.view(staged) for entry in self.entries}
