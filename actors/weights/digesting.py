"""vLLM's own receivers, ``nccl`` and ``ipc``, that note a digest of every weight that the model is given.

So what they carry is verified too, as the bytes of our own backends are by their checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from actors.weights.acceptance import Acceptance, LoadWatch
from actors.weights.digest import digest


class Digesting:
    """Mixed into a receiver of vLLM's."""

    model: Any
    device: torch.device

    acceptance = Acceptance()
    """Of the last publication."""

    def start_weight_update(self) -> None:
        self._found: dict[str, Tensor] = {}
        super().start_weight_update()  # type: ignore[misc]
        self._watch = LoadWatch(self.model)
        self.acceptance = self._watch.acceptance

    def finish_weight_update(self) -> None:
        self._watch.close()
        super().finish_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = SimpleNamespace(load_weights=lambda weights: self._watch.load(self._noted(weights)))
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def damaged(self, expected: Mapping[str, int]) -> list[str]:
        """Names of weights that came since the start of the update with another digest, or not at all."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()  # packed transfers unpack on streams of their own
        return [name for name, value in expected.items() if name not in self._found or int(self._found[name]) != value]

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._found[name] = digest(tensor)
            yield name, tensor


class DigestingNccl(Digesting, NCCLWeightTransferEngine):
    """vLLM's NCCL receiver."""


class DigestingIpc(Digesting, IPCWeightTransferEngine):
    """vLLM's CUDA IPC receiver."""
