"""The sender's end of every backend, as engines of vLLM's ``WeightTransferTrainerFactory``.

``shm`` and ``gloo`` are ours; ``nccl`` and ``ipc`` are vLLM's own. ``tests/cluster/weights/test_transfer_contract.py``
pins what we rely on of vLLM's interface, and fails when it changes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ray
import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from actors.messages import Backend
from actors.weights.gloo import broadcast, gloo_group
from cluster.weights.client import ActorsClient
from cluster.weights.staging import StagedVersions
from contracts.ports import free_port


@dataclass
class SharedMemoryInit(TrainerInitInfo):
    backend: ClassVar[str] = "shm"


@dataclass
class GlooInit(TrainerInitInfo):
    backend: ClassVar[str] = "gloo"
    address: str
    port: int
    world_size: int
    timeout_s: float


class SharedMemorySender(TrainerWeightTransferEngine[SharedMemoryInit]):
    """Tells the engines which file to map; the staged bytes are not copied again."""

    init_info_cls = SharedMemoryInit

    @classmethod
    def trainer_init(
        cls, init_info: SharedMemoryInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        client.init_weight_transfer_engine({})
        return cls(client=client, source=source, is_sender=init_info.is_sender)

    def send_weights(self) -> None:
        assert isinstance(self.source, StagedVersions) and isinstance(self.client, ActorsClient)
        self.client.replace_weights(self.source.slot.update.request())


class GlooSender(TrainerWeightTransferEngine[GlooInit]):
    """Broadcasts the staged bytes over TCP."""

    init_info_cls = GlooInit

    def __init__(self, group: torch.distributed.ProcessGroup, **parts: Any) -> None:
        """``parts``: what vLLM's own senders are made of."""
        super().__init__(**parts)
        self._group: torch.distributed.ProcessGroup | None = group

    @classmethod
    def trainer_init(
        cls, init_info: GlooInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        i = init_info
        rendezvous = {
            "address": i.address,
            "port": i.port,
            "rank_offset": 1,
            "world_size": i.world_size,
            "timeout_s": i.timeout_s,
        }
        # The receivers wait inside the call for the sender to join, so both happen at once.
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(client.init_weight_transfer_engine, rendezvous)
            group = gloo_group(i.address, i.port, 0, i.world_size, i.timeout_s)
            joined.result()
        return cls(group, client=client, source=source, is_sender=i.is_sender)

    def send_weights(self) -> None:
        assert isinstance(self.source, StagedVersions) and self._group is not None
        slot = self.source.slot
        self.client.start_weight_update()
        pool = ThreadPoolExecutor(1)
        try:
            received = pool.submit(self.client.update_weights, slot.update.request())
            for bucket in slot.update.buckets:
                broadcast(self._group, slot.bytes[bucket.first : bucket.end])
            received.result()
        finally:
            # A receiver that died leaves the call hanging: the error must get out before the call does.
            pool.shutdown(wait=False)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._group = None


for _engine in (SharedMemorySender, GlooSender):
    _name = _engine.init_info_cls.backend
    if _name not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(_name, _engine)


def connect(backend: Backend, client: ActorsClient) -> TrainerWeightTransferEngine:
    """An engine that sends to the client's actors what is being sent; they have joined when this returns.

    Raises:
        TransferFailed: an actor did not join.
    """
    client.check_alive()
    workers = len(client.actors) * client.workers_per_engine
    init: TrainerInitInfo
    match backend:
        case "shm":
            init = SharedMemoryInit(rank=0)
        case "gloo":
            init = GlooInit(ray.util.get_node_ip_address(), free_port(), workers + 1, client.timeout_s, rank=0)
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            init = NCCLTrainerInitInfo(
                rank=0,
                master_address=ray.util.get_node_ip_address(),
                master_port=free_port(),
                world_size=workers + 1,
            )
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            init = IPCTrainerInitInfo(rank=0, packed=True)
    return WeightTransferTrainerFactory.trainer_init(init, client=client, source=client.staged)
