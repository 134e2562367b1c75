"""From the learner to the engine of the same process, over the shared memory that a run on one machine uses."""

from __future__ import annotations

from collections.abc import Iterator

from ray.actor import ActorHandle
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

from actors.generator import GenerationActor
from cluster.weights.staging import StagedVersions
from learner.messages import Ack
from learner.zero.weights import WeightMetadata


class LocalWeights:
    """The rank's sink; ``deliver`` is the loop's."""

    def __init__(self) -> None:
        self._staged = StagedVersions(shared=True, overlap=False)
        self._joined = False

    def stage(self, version: int, metadata: list[WeightMetadata], layers: Iterator[list[tuple[str, Tensor]]]) -> None:
        """As of ``WeightSink``."""
        self._staged.stage(version, metadata, layers)

    async def deliver(self, actor: GenerationActor) -> None:
        """Bring the actor to the staged version."""
        if not self._joined:
            await actor.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
            self._joined = True
        with self._staged.sending() as slot:
            assert slot is not None
            await actor.replace_weights(WeightTransferUpdateRequest(update_info=slot.update.request()), slot.version)

    def send(self) -> list[Ack]:
        """Nobody but ``deliver`` sends."""
        return []

    def retarget(self, actors: dict[str, ActorHandle]) -> None:
        """There is one actor, always."""

    def shutdown(self) -> None:
        self._staged.release()
