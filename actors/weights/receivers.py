"""The engine's end of our own weight transfer backends: ``shm`` on one machine, ``gloo`` across machines.

vLLM imports this module in every worker (``worker_extension_cls``), which registers the backends in its factory, and
its own ``nccl`` and ``ipc`` with digests (actors/weights/digesting.py) under names that ``receiver_of`` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.engine_options import receiver_of
from actors.weights.acceptance import Acceptance, LoadWatch
from actors.weights.adapters import install, takes_adapters
from actors.weights.direct_load import DirectLoad
from actors.weights.gloo import GlooGroup
from actors.weights.wire import StagedUpdate


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

    acceptance = Acceptance()
    """Of the last publication that went through vLLM's reload, or of the adapters that were applied last."""
    adapters: Mapping[str, Tensor]
    """Of this update, under peft's names."""
    _direct_load: DirectLoad | None = None
    """How to load without vLLM's reload; None until it has proved right, and where it does not know the model."""
    _tried = False
    _reloading: dict[str, Tensor] | None = None
    """The weights that vLLM's reload is loading."""
    _watch: LoadWatch | None = None
    _expert_kernels: dict[Any, Any]
    """By the method of their layer, from the time before the reload."""

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        published, self._reloading = self._reloading, None
        if published is None:
            return
        assert self._watch is not None
        self._watch.close()
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._restore_expert_kernels()
        self._repack_tied_head()
        if self.device.type != "cpu":
            # What the transfer needed goes back: an engine that sleeps keeps no memory but this.
            torch.accelerator.empty_cache()
        if self.device.type == "cpu" and not self._tried:
            self._tried = True
            direct = DirectLoad.of(self.model, published)
            self._direct_load = direct if direct and direct.agrees(published) else None

    def parse_update_info(self, update_dict: dict[str, Any]) -> StagedUpdate:
        return StagedUpdate.parse(**update_dict)

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
        published = update_info.verified(self._bytes(update_info))
        if takes_adapters(self.model):
            # The bytes are the sender's, who fills them again.
            self.adapters = {name: tensor.clone() for name, tensor in published.items()}
            return
        if self._direct_load:
            self._direct_load.load(published)
            return
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self.device.type == "cpu":
            self._forget_expert_kernels()
        # load_weights alone fails on CPU: linears are packed after loading.
        initialize_layerwise_reload(self.model)
        self._reloading, self._watch = published, LoadWatch(self.model)
        self.acceptance = self._watch.acceptance
        self._watch.load((name, tensor.to(self.device)) for name, tensor in published.items())

    def _bytes(self, update: StagedUpdate) -> Tensor:
        """uint8 [update.size]"""
        raise NotImplementedError

    def _repack_tied_head(self) -> None:
        """vLLM keeps a packed copy of a tied head on CPU, which a reload of the embedding does not touch."""
        head = getattr(self.model, "lm_head", None)
        tied = getattr(self.model_config.hf_config, "tie_word_embeddings", False)
        if self.device.type == "cpu" and tied and head is not None and hasattr(head, "quant_method"):
            head.quant_method.process_weights_after_loading(head)

    def _forget_expert_kernels(self) -> None:
        """vLLM packs stacked experts on CPU when it makes their kernel, and not again for an update: have it made anew,
        or the kernel computes with weights that are not packed."""
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        methods = [getattr(layer, "quant_method", None) for layer in self.model.modules()]
        experts = [method for method in methods if isinstance(method, UnquantizedFusedMoEMethod)]
        self._expert_kernels = {method: method.moe_kernel for method in experts}
        for method in experts:
            method.moe_kernel = None

    def _restore_expert_kernels(self) -> None:
        """Of layers that the reload has not come to."""
        for method, kernel in self._expert_kernels.items():
            method.moe_kernel = method.moe_kernel or kernel
        self._expert_kernels = {}

    def shutdown(self) -> None:
        pass


class SharedMemoryReceiver(StagedReceiver):
    """The bytes lie in shared memory of this machine."""

    init_info_cls = NoRendezvous

    def init_transfer_engine(self, init_info: NoRendezvous) -> None:
        self._maps: dict[tuple[str, int], Tensor] = {}

    def _bytes(self, update: StagedUpdate) -> Tensor:
        key = update.path, update.size
        if key not in self._maps:
            # The sender has two and fills them in turn: mapped once, their pages need not be found again.
            self._maps = {kept: mapped for kept, mapped in self._maps.items() if Path(kept[0]).exists()}
            self._maps[key] = torch.from_file(update.path, shared=True, size=update.size, dtype=torch.uint8)
        return self._maps[key]


class GlooReceiver(StagedReceiver):
    """The bytes are broadcast by the sender, bucket by bucket."""

    init_info_cls = GlooRendezvous
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooRendezvous) -> None:
        self.shutdown()
        i = init_info
        self._group = GlooGroup(i.address, i.port, i.rank_offset + self.parallel_config.rank, i.world_size, i.timeout_s)

    def _bytes(self, update: StagedUpdate) -> Tensor:
        if self._group is None:
            raise RuntimeError("weights: the gloo group was not formed")
        staged = torch.empty(update.size, dtype=torch.uint8)
        try:
            for bucket in update.buckets:
                self._group.broadcast(staged[bucket.first : bucket.end])
        except RuntimeError:
            self.shutdown()  # members that wait for this one fail at once
            raise
        return staged

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


class WeightReceiver:
    """Named as ``worker_extension_cls``; its import is what registers the backends."""

    weight_transfer_engine: Any

    def apply_adapters(self) -> None:
        """Use the adapters that came with the update that is finished: vLLM forgets all adapters when it ends."""
        engine = self.weight_transfer_engine
        engine.acceptance = install(engine.model, engine.adapters)

    def weights_acceptance(self) -> dict[str, Any]:
        """``Acceptance`` of the last update that went through vLLM's reload or brought adapters, as plain data."""
        return asdict(self.weight_transfer_engine.acceptance)

    def damaged_weights(self, expected: dict[str, int]) -> list[str]:
        """Names of the weights of this update that do not have the digests that they were sent with."""
        return self.weight_transfer_engine.damaged(expected)


for _backend, _engine in (("shm", SharedMemoryReceiver), ("gloo", GlooReceiver)):
    if receiver_of(_backend) not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(receiver_of(_backend), _engine)
for _backend, _class in (("nccl", "DigestingNccl"), ("ipc", "DigestingIpc")):
    if receiver_of(_backend) not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(receiver_of(_backend), "actors.weights.digesting", _class)
