"""An actor that dies or stalls between two buckets of a broadcast: the others get the version, soon. No engine runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle

from actors.weights import gloo
from cluster.weights import client, publisher, slot
from cluster.weights.publisher_spec import PublisherSpec

cloudpickle.register_pickle_by_value(sys.modules[__name__])

WEIGHT = torch.arange(4096.0)


class Actor:
    """The receiving half of an actor: bytes of a version, and no model that they are loaded into."""

    def __init__(self, ends: int | None) -> None:
        """``ends``: the signal that it sends itself in the middle of version 2."""
        from actors.weights.gloo import GlooGroup
        from actors.weights.receivers import GlooReceiver

        parallel = SimpleNamespace(rank=0)
        vllm_config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self._receiver = GlooReceiver(None, vllm_config, torch.device("cpu"), None)
        self._ends, self._taken, self.version = ends, 0, 0
        broadcast = GlooGroup.broadcast

        def counted(group: Any, data: Any) -> None:
            broadcast(group, data)
            self._taken += 1
            if self._ends and self.version == 1 and self._taken % 2:
                os.kill(os.getpid(), self._ends)

        GlooGroup.broadcast = counted  # type: ignore[method-assign, assignment]

    async def ready(self) -> int:
        return os.getpid()

    async def init_weight_transfer_engine(self, request: Any) -> None:
        info = self._receiver.parse_init_info(request.init_info)
        await asyncio.to_thread(self._receiver.init_transfer_engine, info)

    async def start_weight_update(self) -> None:
        self._taken = 0

    async def update_weights(self, request: Any) -> None:
        await asyncio.to_thread(self._receive, request.update_info)

    def _receive(self, request: dict[str, Any]) -> None:
        update = self._receiver.parse_update_info(request)
        (weight,) = update.verified(self._receiver._bytes(update)).values()
        self._weight = weight

    async def finish_weight_update(self, version: int, digests: dict[str, int]) -> None:
        self.version = version

    async def held(self) -> tuple[int, float]:
        return self.version, float(self._weight.sum())


@pytest.fixture
def small_and_impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Many buckets, and seconds where a run has tens of them."""
    monkeypatch.setattr(slot, "BUCKET_BYTES", 4096)
    monkeypatch.setattr(slot, "CHUNK_BYTES", 2048)
    monkeypatch.setattr(client, "PING_S", 0.5)
    monkeypatch.setattr(client, "ALIVE_S", 3.0)
    monkeypatch.setattr(gloo, "STALLED_S", 6.0)
    monkeypatch.setattr(publisher, "RELEASE_S", 8.0)
    yield


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_are_served_when_one_is_lost_in_the_middle(ray_local, small_and_impatient, ends: signal.Signals):
    kinds = {"a": None, "b": ends, "c": None}
    actors = {name: ray.remote(num_cpus=0)(Actor).remote(end) for name, end in kinds.items()}
    pids = dict(zip(actors, ray.get([actor.ready.remote() for actor in actors.values()]), strict=True))
    sender = PublisherSpec("gloo", timeout_s=20.0).build()
    try:
        sender.retarget(actors)
        for version in (1, 2):
            weight = version * WEIGHT
            sender.stage(version, [("w", weight.dtype, tuple(weight.shape))], [[("w", weight)]])
            started = time.monotonic()
            acks = {ack.actor: ack.error for ack in sender.send()}
            seconds = time.monotonic() - started
            lost = {"b"} if version == 2 else set()
            assert {name for name, error in acks.items() if error} == lost, acks
            served = {name: tuple(ray.get(actor.held.remote())) for name, actor in actors.items() if name not in lost}
            assert served == dict.fromkeys(served, (version, float(weight.sum())))
        # The receivers' limit is the real one: a stalled peer holds them for STALLED_S.
        assert seconds < gloo.STALLED_S + 40
    finally:
        sender.shutdown()
        for name, actor in actors.items():
            ray.kill(actor)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[name], signal.SIGCONT)
