"""What the learner asks of the part that carries its weights to the engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from learner.messages import Ack
from learner.zero.weights import WeightMetadata

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class WeightSink(Protocol):
    """Given by the cluster; lives in rank 0's process. ``send`` and ``retarget`` run beside ``stage``."""

    def stage(self, version: int, metadata: list[WeightMetadata], layers: Iterator[list[tuple[str, Tensor]]]) -> None:
        """Take a version's weights over. A layer's tensors are valid until the next layer is asked for."""

    def send(self) -> list[Ack]:
        """Send the newest staged version; every actor's answer."""

    def retarget(self, actors: dict[str, ActorHandle]) -> None:
        """Send to these actors from now on."""

    def shutdown(self) -> None:
        """Free what is held."""
