"""Holds published weights: twice where one version may be sent while the next is staged, else once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from cluster.weights.slot import Layer, Metadata, Slot


class StagedVersions(WeightSource):
    """As vLLM's ``WeightSource`` it is the version that is being sent.

    A sender of vLLM's is given its source once and sends it again and again: which version that is changes here.
    """

    def __init__(self, *, shared: bool, overlap: bool = True, device: torch.device | str | None = None) -> None:
        """
        Args:
            shared, device: of ``Slot``.
            overlap: two slots: a version is staged while another is sent. With one, the two wait for each other.
        """
        on = None if device is None else torch.device(device)
        self._slots = [Slot(shared=shared, device=on) for _ in range(2 if overlap else 1)]
        self._sending: Slot | None = None
        self._staging: Slot | None = None
        self._changed = threading.Condition()

    def stage(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy a version in; with two slots this does not wait for one that is being sent."""
        with self._changed:
            self._changed.wait_for(lambda: any(slot is not self._sending for slot in self._slots))
            # The slot that is neither being sent nor the newest of two idle ones.
            free = min((slot for slot in self._slots if slot is not self._sending), key=lambda slot: slot.version)
            free.forget()
            self._staging = free
        try:
            free.fill(version, metadata, layers)
        finally:
            with self._changed:
                self._staging = None
                self._changed.notify_all()

    def newest(self) -> Slot | None:
        """The newest whole version; None: there is none."""
        slot = max(self._slots, key=lambda slot: slot.version)
        return slot if slot.version >= 0 else None

    @contextmanager
    def sending(self) -> Iterator[Slot | None]:
        """The newest version, over which nothing is staged meanwhile; None: there is none."""
        with self._changed:
            self._changed.wait_for(lambda: any(slot is not self._staging for slot in self._slots))
            self._sending = self.newest()
        try:
            yield self._sending
        finally:
            with self._changed:
                self._sending = None
                self._changed.notify_all()

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
