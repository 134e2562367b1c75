"""The sender's end of every backend, as engines of vLLM's ``WeightTransferTrainerFactory``.

``shm`` and ``gloo`` are ours; ``nccl`` and ``ipc`` are vLLM's own. This file and ``actors/weights/receivers.py`` are
all that knows vLLM's interface; ``tests/cluster/weights/test_transfer_contract.py`` fails when it changes.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Self

import ray
import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from actors.weights.receivers import broadcast, gloo_group
from cluster.weights.client import ActorsClient
from cluster.weights.staging import Slot

Backend = Literal["shm", "gloo", "nccl", "ipc"]


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
        assert isinstance(self.source, Slot) and isinstance(self.client, ActorsClient)
        self.client.replace_weights(asdict(self.source.update))


class GlooSender(TrainerWeightTransferEngine[GlooInit]):
    """Broadcasts the staged bytes over TCP."""

    init_info_cls = GlooInit
    _group: torch.distributed.ProcessGroup | None = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
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
            engine._group = gloo_group(i.address, i.port, 0, i.world_size, i.timeout_s)
            joined.result()
        return engine

    def send_weights(self) -> None:
        assert isinstance(self.source, Slot) and self._group is not None
        slot = self.source
        self.client.start_weight_update()
        pool = ThreadPoolExecutor(1)
        try:
            received = pool.submit(self.client.update_weights, asdict(slot.update))
            for first, end, _ in slot.update.buckets:
                broadcast(self._group, slot.bytes[first:end])
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


def connect(backend: Backend, client: ActorsClient, slot: Slot, timeout_s: float) -> TrainerWeightTransferEngine:
    """An engine that sends ``slot`` to the client's actors; they have joined when this returns."""
    client.check_alive()
    workers = len(client.actors) * client.workers_per_engine
    init: TrainerInitInfo
    match backend:
        case "shm":
            init = SharedMemoryInit(rank=0)
        case "gloo":
            address, port = _free_port()
            init = GlooInit(address, port, workers + 1, timeout_s, rank=0)
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            address, port = _free_port()
            init = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=workers + 1)
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            init = IPCTrainerInitInfo(rank=0, packed=True)
    return WeightTransferTrainerFactory.trainer_init(init, client=client, source=slot)


def _free_port() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]
