"""vLLM's own receivers, ``nccl`` and ``ipc``, that note a digest of every weight that the model is given.

So what they carry is verified too, as the bytes of our own backends are by their checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import layerwise

from actors.weights.acceptance import Acceptance, LoadWatch
from actors.weights.adapters import takes_adapters
from actors.weights.communicator import JOIN_S, give_up, giving_up_with_the_others, open_within, validate_whole
from actors.weights.digest import digest


class Digesting:
    """Mixed into a receiver of vLLM's."""

    model: Any
    device: torch.device

    acceptance = Acceptance()
    """Of the last publication."""

    def start_weight_update(self) -> None:
        self._found: dict[str, Tensor] = {}
        self.adapters: dict[str, Tensor] = {}
        if takes_adapters(self.model):
            return
        _forget_unfinished(self.model)
        super().start_weight_update()  # type: ignore[misc]
        self._watch = LoadWatch(self.model)
        self.acceptance = self._watch.acceptance

    def finish_weight_update(self) -> None:
        if takes_adapters(self.model):
            return
        self._watch.close()
        super().finish_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        load = self._keep if takes_adapters(model) else self._watch.load
        self.model = SimpleNamespace(load_weights=lambda weights: load(self._noted(weights)))
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def damaged(self, expected: Mapping[str, int]) -> list[str]:
        """Names of weights that came since the start of the update with another digest, or not at all."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()  # packed transfers unpack on streams of their own
        return [name for name, value in expected.items() if name not in self._found or int(self._found[name]) != value]

    def _keep(self, adapters: Iterable[tuple[str, Tensor]]) -> None:
        """Until the update is complete: the buffers that they lie in are used again."""
        self.adapters |= {name: tensor.clone() for name, tensor in adapters}

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._found[name] = digest(tensor)
            yield name, tensor


class DigestingNccl(Digesting, NCCLWeightTransferEngine):
    """vLLM's NCCL receiver, which lets go when the sender has: vLLM's own would wait for ever."""

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self.shutdown()  # vLLM's own leaves the old communicator open
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers
        self.model_update_group = open_within(
            JOIN_S, lambda: worker_init_process_group(init_info, self.parallel_config)
        )

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self.model_update_group is None:
            raise RuntimeError("weights: the NCCL group was not formed")
        with giving_up_with_the_others(self.model_update_group):
            super().receive_weights(update_info)

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super()._noted(weights):
            validate_whole(self.model_update_group)
            yield name, tensor

    def shutdown(self) -> None:
        if self.model_update_group is not None:
            give_up(self.model_update_group)
            self.model_update_group = None


class DigestingIpc(Digesting, IPCWeightTransferEngine):
    """vLLM's CUDA IPC receiver."""


def _forget_unfinished(model: nn.Module) -> None:
    """Of an update that was broken off, vLLM keeps the weights of layers that were not complete, and would take them
    for a part of the next one."""
    for layer in model.modules():
        info = layerwise.get_layerwise_info(layer)
        if info.can_load():
            info.load_numel = 0
            info.loaded_weights.clear()
