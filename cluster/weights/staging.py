"""Holds published weights twice: one version may be sent while the next is staged."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from cluster.weights.slot import Layer, Metadata, Slot


class StagedVersions(WeightSource):
    """Two slots. As vLLM's ``WeightSource`` it is the version that is being sent.

    A sender of vLLM's is given its source once and sends it again and again: which version that is changes here.
    """

    def __init__(self, *, shared: bool, device: torch.device | str | None = None) -> None:
        """Arguments of ``Slot``."""
        on = None if device is None else torch.device(device)
        self._slots = [Slot(shared=shared, device=on) for _ in range(2)]
        self._sending: Slot | None = None
        self._lock = threading.Lock()

    def stage(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy a version in; does not wait for one that is being sent."""
        with self._lock:
            # The slot that is neither being sent nor the newest of two idle ones.
            free = min((slot for slot in self._slots if slot is not self._sending), key=lambda slot: slot.version)
            free.forget()
        free.fill(version, metadata, layers)

    def newest(self) -> Slot | None:
        """The newest whole version; None: there is none."""
        slot = max(self._slots, key=lambda slot: slot.version)
        return slot if slot.version >= 0 else None

    @contextmanager
    def sending(self) -> Iterator[Slot | None]:
        """The newest version, over which nothing is staged meanwhile; None: there is none."""
        with self._lock:
            self._sending = self.newest()
        try:
            yield self._sending
        finally:
            with self._lock:
                self._sending = None

    @property
    def slot(self) -> Slot:
        """The version that is being sent."""
        assert self._sending is not None
        return self._sending

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(entry.name, entry.torch_dtype, entry.shape) for entry in self.slot.update.entries]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.slot.tensors()

    def release(self) -> None:
        """Free the memory."""
        for slot in self._slots:
            slot.release()
