"""What the learner asks of the part that carries its weights to the engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Publisher(Protocol):
    """Handed in by the cluster; lives in rank 0's process."""

    def stage(
        self,
        version: int,
        metadata: list[tuple[str, torch.dtype, tuple[int, ...]]],
        layers: Iterator[list[tuple[str, Tensor]]],
    ) -> None: ...

    def send(self) -> Any: ...

    def retarget(self, actors: dict[str, Any]) -> None: ...

    def shutdown(self) -> None: ...
