"""The sender's end of every backend, as engines of vLLM's ``WeightTransferTrainerFactory``.

``shm`` and ``gloo`` are ours; ``nccl`` and ``ipc`` are vLLM's own, ``nccl`` with an end to its waiting.
``tests/cluster/weights/test_transfer_contract.py`` pins what we rely on of vLLM's interface, and fails when it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ray
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_common import trainer_init as open_trainer_endpoint
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from actors.messages import Backend
from actors.weights.communicator import JOIN_S, give_up, open_within
from actors.weights.gloo import GlooGroup
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

    def __init__(self, group: GlooGroup, **parts: Any) -> None:
        """``parts``: what vLLM's own senders are made of."""
        super().__init__(**parts)
        self._group = group

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
        joining = _beside(client.init_weight_transfer_engine, rendezvous)
        try:
            group = GlooGroup(i.address, i.port, 0, i.world_size, i.timeout_s)
        except RuntimeError:
            joining.result()  # who failed is known there
            raise
        try:
            joining.result()
        except BaseException:
            group.close()
            raise
        return cls(group, client=client, source=source, is_sender=i.is_sender)

    def send_weights(self) -> None:
        assert isinstance(self.source, StagedVersions)
        slot = self.source.slot
        self.client.start_weight_update()
        received = _beside(self.client.update_weights, slot.update.request())
        try:
            for bucket in slot.update.buckets:
                self._group.broadcast(slot.bytes[bucket.first : bucket.end])
        except RuntimeError:
            self._group.close()
            received.result()  # who failed is known there
            raise
        received.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._group.close()


@dataclass
class NcclInit(NCCLTrainerInitInfo):
    backend: ClassVar[str] = "abortable-nccl"


class NcclSender(NCCLTrainerWeightTransferEngine):
    """vLLM's NCCL sender, whose communicator is given up when an actor fails: NCCL itself would wait for ever."""

    init_info_cls = NcclInit

    @classmethod
    def trainer_init(
        cls, init_info: NCCLTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None and isinstance(client, ActorsClient)
        i = init_info
        sender = cls(
            client=client,
            source=source,
            packed=i.packed,
            packed_buffer_size_bytes=i.packed_buffer_size_bytes,
            packed_num_buffers=i.packed_num_buffers,
        )
        rendezvous = NCCLWeightTransferInitInfo(
            master_address=i.master_address,
            master_port=i.master_port,
            rank_offset=1,
            world_size=i.world_size,
            packed=i.packed,
            packed_buffer_size_bytes=i.packed_buffer_size_bytes,
            packed_num_buffers=i.packed_num_buffers,
        )
        joining = _beside(client.init_weight_transfer_engine, worker_init_payload(rendezvous))
        try:
            sender.model_update_group = open_within(min(client.timeout_s, JOIN_S), lambda: open_trainer_endpoint(i))
        except (TimeoutError, RuntimeError):
            if joining.done():
                joining.result()  # who failed is known there
            raise
        client.when_failed = sender.shutdown
        try:
            joining.result()
        except BaseException:
            sender.shutdown()
            raise
        return sender

    def shutdown(self) -> None:
        # It stays where it is: the sending thread goes on for a moment, and broadcasts nothing.
        if self.model_update_group is not None:
            give_up(self.model_update_group)


def _beside(call: Callable[..., None], *arguments: object) -> Future[None]:
    """``call`` on a thread of its own, which an error of the caller does not wait for."""
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(call, *arguments)
    pool.shutdown(wait=False)
    return answer


for _engine in (SharedMemorySender, GlooSender, NcclSender):
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
            init = NcclInit(
                rank=0,
                master_address=ray.util.get_node_ip_address(),
                master_port=free_port(),
                world_size=workers + 1,
            )
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            # One buffer goes back and forth, and must hold the largest weight.
            largest = max(entry.end - entry.offset for entry in client.staged.slot.update.entries)
            size = max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, largest)
            init = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)
    return WeightTransferTrainerFactory.trainer_init(init, client=client, source=client.staged)
