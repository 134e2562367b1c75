"""A death in the middle of a transfer over NCCL: nobody waits for ever, and no communicator stays open.

vLLM's own two ends over communicators in memory; the actors are threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from actors.weights import digesting
from actors.weights.digesting import DigestingNccl
from cluster.weights import senders
from cluster.weights.client import ActorsClient, TransferFailed
from cluster.weights.senders import NcclInit
from cluster.weights.staging import StagedVersions
from support.nccl import FakeNccl, Group, one_stream

WEIGHTS = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2)}


class Receiver:
    """vLLM's NCCL receiver behind an actor's calls."""

    def __init__(self, dies: bool) -> None:
        self.dies, self.loaded = dies, 0
        model = SimpleNamespace(load_weights=self._load, modules=list)
        vllm_config: Any = SimpleNamespace(parallel_config=None, model_config=None)
        self.engine = DigestingNccl(None, vllm_config, torch.device("cpu"), model)

    def _load(self, weights: Any) -> None:
        self.loaded += len(list(weights))

    def start(self) -> None:
        with mock.patch.object(nccl_engine.NCCLWeightTransferEngine, "start_weight_update"):  # there are no layers
            self.engine.start_weight_update()

    def update(self, info: dict[str, Any]) -> None:
        if self.dies:
            raise TransferFailed("dying", "the process is gone", gone=True)
        self.engine.receive_weights(self.engine.parse_update_info(info))


class Client(ActorsClient):
    """Its actors are threads."""

    def __init__(self, receivers: list[Receiver], staged: StagedVersions) -> None:
        super().__init__({}, 1, 30.0, staged)
        self.receivers = receivers
        self.errors: list[Exception] = []
        self.threads: list[threading.Thread] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        def join(number: int, receiver: Receiver) -> None:
            own = init_info | {"rank_offset": init_info["rank_offset"] + number}
            receiver.engine.init_transfer_engine(receiver.engine.parse_init_info(own))

        self._each(join)

    def start_weight_update(self) -> None:
        self._each(lambda _, receiver: receiver.start())

    def update_weights(self, update_info: Any) -> None:
        self._each(lambda _, receiver: receiver.update(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass

    def _each(self, call: Any) -> None:
        """Raises the first failure as it comes, and lets go whoever waits for it."""
        failures: list[Exception] = []

        def work(number: int, receiver: Receiver) -> None:
            try:
                call(number, receiver)
            except Exception as error:
                failures.append(error)
                self.errors.append(error)

        self.threads = [threading.Thread(target=work, args=item) for item in enumerate(self.receivers)]
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads) and not failures:
            time.sleep(0.01)
        if failures:
            self.when_failed()
            raise failures[0]


@pytest.fixture
def library() -> Iterator[FakeNccl]:
    """Every rendezvous forms a new group of three."""
    library = FakeNccl()
    groups: dict[int, Any] = {}

    def group(port: int) -> Group:
        return groups.setdefault(port, Group(3))

    lock = threading.Lock()

    def joined(port: int, rank: int) -> Any:
        with lock:
            return group(port).join(library, rank)

    with (
        mock.patch.object(senders, "open_trainer_endpoint", lambda info: joined(info.master_port, 0)),
        mock.patch.object(
            digesting, "worker_init_process_group", lambda info, _: joined(info.master_port, info.rank_offset)
        ),
        one_stream(),
    ):
        yield library


def staged() -> StagedVersions:
    versions = StagedVersions(shared=False)
    versions.stage(4, [(name, w.dtype, tuple(w.shape)) for name, w in WEIGHTS.items()], [list(WEIGHTS.items())])
    return versions


def connected(client: Client, port: int) -> Any:
    init = NcclInit(rank=0, master_address="127.0.0.1", master_port=port, world_size=3, packed=False)
    return WeightTransferTrainerFactory.trainer_init(init, client=client, source=client.staged)


def test_a_death_ends_the_transfer_for_sender_and_survivors(library: FakeNccl):
    survivor = Receiver(dies=False)
    client = Client([survivor, Receiver(dies=True)], staged())
    sender = connected(client, 1)
    assert len(library.open) == 3
    started = time.monotonic()
    with client.staged.sending(), pytest.raises(TransferFailed, match="the process is gone"):
        sender.send_weights()
    for thread in client.threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in client.threads)
    assert time.monotonic() - started < 10
    assert any("broken off" in str(error) for error in client.errors)
    sender.shutdown()
    # The dying one's went with its process.
    assert [rank for _, rank in library.open.values()] == [2]


def test_communicators_do_not_pile_up(library: FakeNccl):
    receivers = [Receiver(dies=False), Receiver(dies=False)]
    for port in range(5):
        client = Client(receivers, staged())
        sender = connected(client, port)
        with client.staged.sending():
            sender.send_weights()
        assert len(library.open) == 3
        sender.shutdown()
    assert library.count == 15
    for receiver in receivers:
        receiver.engine.shutdown()
    assert library.open == {}
    assert [receiver.loaded for receiver in receivers] == [5 * len(WEIGHTS)] * 2


def test_a_rendezvous_that_fails_leaves_no_communicator_of_the_senders(library: FakeNccl):
    class Refusing(Client):
        def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
            raise TransferFailed("a", "it can't", gone=False)

    with pytest.raises(TransferFailed, match="it can't"):
        connected(Refusing([], staged()), 1)
    assert library.open == {}
