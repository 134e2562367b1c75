"""Everything that a rank keeps on its GPU, moved to the host and back: while it is away, an engine has the GPU.

DeepSpeed's own ``offload_states`` knows ZeRO 3 alone. Here the memory behind the tensors is given back while they stay
what they are: views of one buffer, such as the parameters in ZeRO's flat ones, still share it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

OWNERS = ("deepspeed", "learner", "torch.optim")
"""Packages in whose objects tensors are looked for."""


class Residence:
    """What ``owners`` hold on ``device``."""

    def __init__(self, device: torch.device, *owners: object) -> None:
        """
        Args:
            owners: objects that hold tensors, at any depth; looked through again each time.
        """
        self._device, self._owners = device, owners
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []
        """Emptied memory, and its bytes on the host."""
        self._host: dict[int, Tensor] = {}
        """Pinned buffers of the last time, by the storage that they are for: pinning takes longer than copying."""

    @torch.no_grad()
    def leave(self) -> int:
        """Move everything to the host; returns how many bytes. Nothing may compute with it until ``come_back``."""
        if self._away:
            return 0
        kept: dict[int, Tensor] = {}
        for storage in self._storages():
            key, size = storage._cdata, storage.nbytes()
            host = self._host.get(key)
            if host is None or len(host) != size:
                host = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            host.copy_(_bytes_of(storage, self._device), non_blocking=True)
            kept[key] = host
            self._away.append((storage, host))
        self._wait()
        self._host = kept
        for storage, _ in self._away:
            storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return sum(len(host) for _, host in self._away)

    @torch.no_grad()
    def come_back(self) -> None:
        """Bring everything back, bit for bit."""
        for storage, host in self._away:
            storage.resize_(len(host))
            _bytes_of(storage, self._device).copy_(host, non_blocking=True)
        self._wait()
        self._away.clear()

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Of all tensors on the device, each once."""
        seen: set[int] = set()
        for tensor in tensors_of(self._owners):
            if tensor.device != self._device:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in seen and storage.nbytes() and storage.resizable():
                seen.add(storage._cdata)
                yield storage

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def tensors_of(owners: Iterable[object]) -> Iterator[Tensor]:
    """All tensors that the objects, or what they hold, refer to: in attributes, lists, tuples, sets and dicts."""
    seen: set[int] = set()
    left: list[Any] = list(owners)
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            yield found
            left += [found.grad] if found.is_leaf and found.grad is not None else []
            left += list(vars(found).values()) if isinstance(found, nn.Parameter) else []  # ZeRO 3's partitions
        elif isinstance(found, Mapping):
            left += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set | frozenset):
            left += found
        elif isinstance(found, nn.Module) or type(found).__module__.startswith(OWNERS):
            left += list(getattr(found, "__dict__", {}).values())


def _bytes_of(storage: torch.UntypedStorage, device: torch.device) -> Tensor:
    """uint8 [bytes], without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
