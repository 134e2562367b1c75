"""Digests of weights on the devices that send and load them, so that what vLLM's own backends carry is verified too.

``nccl`` and ``ipc`` are vLLM's; their receivers here note a digest of every weight that the model is given. The bytes
are read where they are: nothing comes back from the GPU but one number a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

CHUNK = 1 << 24
"""Words read at a time: their products take 8 bytes each."""


def digest(weight: Tensor) -> Tensor:
    """int64 [] on the weight's device: its words, each times an odd number of its place, added up modulo 2**64.

    An odd factor can be divided by, so no change of a single word goes unseen.
    """
    words = weight.detach().contiguous().view(-1)
    words = words.view(torch.int16 if words.element_size() % 2 == 0 else torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    for first in range(0, len(words), CHUNK):
        part = words[first : first + CHUNK].to(torch.int64)
        total += (part * (2 * torch.arange(first, first + len(part), device=weight.device) + 1)).sum()
    return total


class Digesting:
    """Mixed into a receiver of vLLM's."""

    model: Any
    device: torch.device

    def start_weight_update(self) -> None:
        self._found: dict[str, Tensor] = {}
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = SimpleNamespace(load_weights=lambda weights: model.load_weights(self._noted(weights)))
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
