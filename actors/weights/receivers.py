"""The engine's end of our own weight transfer backends: ``shm`` on one machine, ``gloo`` across machines.

vLLM imports this module in every worker (``worker_extension_cls``), which registers the backends in its factory, and
its own ``nccl`` and ``ipc`` with digests (actors/weights/digest.py) under names that ``receiver_of`` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.weights.direct_load import LiveWeights
from actors.weights.parallel_copy import in_parallel

Entry = tuple[str, str, tuple[int, ...], int]
"""(name, dtype, shape, offset in bytes) of a weight."""
Bucket = tuple[int, int, int]
"""(first byte, end, checksum)."""
Checksum = xxhash.xxh3_64
"""64 bits of bytes, at the speed of memory, where zlib's checksums take a third of a publication."""


@dataclass
class StagedUpdate(WeightTransferUpdateInfo):
    """Where the bytes of one publication are and what they are."""

    entries: list[Entry]
    buckets: list[Bucket]
    """Together they are all bytes."""
    path: str = ""
    """Where the shared memory is opened (``shm``)."""


@dataclass
class NoRendezvous(WeightTransferInitInfo):
    """Shared memory needs none."""


@dataclass
class GlooRendezvous(WeightTransferInitInfo):
    """Where the sender, rank 0, waits for the receivers."""

    address: str
    port: int
    rank_offset: int
    world_size: int
    timeout_s: float


class StagedReceiver(WeightTransferEngine):
    """Loads a publication given as one run of bytes. Subclasses say how the bytes arrive."""

    update_info_cls = StagedUpdate
    _live: LiveWeights | None = None
    """How to load without vLLM's reload; None until it has proved right, and where it does not know the model."""
    _tried = False
    _reloading: dict[str, Tensor] | None = None
    """The weights that vLLM's reload is loading."""

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        published, self._reloading = self._reloading, None
        if published is None:
            return
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        if self.device.type == "cpu" and not self._tried:
            self._tried = True
            live = LiveWeights.of(self.model, published)
            self._live = live if live and live.agrees(published) else None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises the accelerator, and there may be none.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: StagedUpdate) -> None:
        """Load the weights, each bucket of bytes verified first.

        Raises:
            RuntimeError: a checksum is off; nothing of the update counts.
        """
        published = self._verified(update_info)
        if self._live:
            self._live.load(published)
            return
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        # A plain load_weights fails on CPU: linears are packed after loading.
        initialize_layerwise_reload(self.model)
        self._reloading = published
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in published.items())

    def _verified(self, update: StagedUpdate) -> dict[str, Tensor]:
        """Views of the staged bytes by name."""
        staged = self._bytes(update)
        sums = in_parallel(lambda bucket: Checksum(staged[bucket[0] : bucket[1]].numpy()).intdigest(), update.buckets)
        for (first, end, expected), found in zip(update.buckets, sums, strict=True):
            if found != expected:
                raise RuntimeError(
                    f"weights: bytes [{first}, {end}) arrived damaged: checksum {found} is not {expected}"
                )
        published = {}
        for name, dtype_name, shape, offset in update.entries:
            dtype = getattr(torch, dtype_name)
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            published[name] = staged[offset : offset + count].view(dtype).view(*shape)
        return published

    def _bytes(self, update: StagedUpdate) -> Tensor:
        """uint8 [bytes]"""
        raise NotImplementedError

    def _repack_tied_head(self) -> None:
        """vLLM keeps a packed copy of a tied head on CPU, which a reload of the embedding does not touch."""
        head = getattr(self.model, "lm_head", None)
        tied = getattr(self.model_config.hf_config, "tie_word_embeddings", False)
        if self.device.type == "cpu" and tied and hasattr(head, "quant_method"):
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        pass


class SharedMemoryReceiver(StagedReceiver):
    """The bytes lie in shared memory of this machine."""

    init_info_cls = NoRendezvous

    def init_transfer_engine(self, init_info: NoRendezvous) -> None:
        self._maps: dict[tuple[str, int], Tensor] = {}

    def _bytes(self, update: StagedUpdate) -> Tensor:
        size = update.buckets[-1][1] if update.buckets else 0
        if (update.path, size) not in self._maps:
            # The sender has two and fills them in turn: mapped once, their pages need not be found again.
            self._maps = {key: mapped for key, mapped in self._maps.items() if Path(key[0]).exists()}
            self._maps[update.path, size] = torch.from_file(update.path, shared=True, size=size, dtype=torch.uint8)
        return self._maps[update.path, size]


class GlooReceiver(StagedReceiver):
    """The bytes are broadcast by the sender, bucket by bucket."""

    init_info_cls = GlooRendezvous
    _group: torch.distributed.ProcessGroup | None = None

    def init_transfer_engine(self, init_info: GlooRendezvous) -> None:
        rank = init_info.rank_offset + self.parallel_config.rank
        self._group = gloo_group(init_info.address, init_info.port, rank, init_info.world_size, init_info.timeout_s)

    def _bytes(self, update: StagedUpdate) -> Tensor:
        if self._group is None:
            raise RuntimeError("weights: the gloo group was not formed")
        size = update.buckets[-1][1] if update.buckets else 0
        staged = torch.empty(size, dtype=torch.uint8)
        for first, end, _ in update.buckets:
            broadcast(self._group, staged[first:end])
        return staged

    def shutdown(self) -> None:
        self._group = None


def gloo_group(address: str, port: int, rank: int, world_size: int, timeout_s: float) -> torch.distributed.ProcessGroup:
    """A group of its own beside whatever torch.distributed groups the process has; rank 0 listens."""
    timeout = timedelta(seconds=timeout_s)
    store = torch.distributed.TCPStore(address, port, world_size, rank == 0, timeout=timeout, wait_for_workers=False)
    return torch.distributed.ProcessGroupGloo(store, rank, world_size, timeout)


def broadcast(group: torch.distributed.ProcessGroup, data: Tensor) -> None:
    """From rank 0 to all, in place."""
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([data], options).wait()


class WeightReceiver:
    """Named as ``worker_extension_cls``; its import is what registers the backends."""

    weight_transfer_engine: Any

    def damaged_weights(self, expected: dict[str, int]) -> list[str]:
        """Names of the weights of this update that do not have the digests that they were sent with."""
        return self.weight_transfer_engine.damaged(expected)


DIGESTING = {"nccl": "DigestingNccl", "ipc": "DigestingIpc"}


def receiver_of(backend: str) -> str:
    """Under which name vLLM's factory has the receiver of a backend."""
    return f"digesting-{backend}" if backend in DIGESTING else backend


for _name, _engine in (("shm", SharedMemoryReceiver), ("gloo", GlooReceiver)):
    if _name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_name, _engine)
for _name, _class in DIGESTING.items():
    if receiver_of(_name) not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(receiver_of(_name), "actors.weights.digest", _class)
