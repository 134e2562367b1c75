"""Whose fault a failed transfer is, and how long it takes to be known. The actors are small processes of Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import cloudpickle

from cluster.weights import client as module
from cluster.weights.client import ActorsClient, TransferFailed
from contracts.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Actor:
    """Answers as an actor does; what ``update_weights`` does is said before."""

    def __init__(self) -> None:
        # What the calls bring along is of vLLM; its import would keep the loop from giving a sign of life.
        import vllm.distributed.weight_transfer.base  # noqa: F401

    async def become(self, does: str) -> int:
        self._does = does
        return os.getpid()

    async def ready(self) -> str:
        return "ready"

    async def update_weights(self, _: Any) -> None:
        match self._does:
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "waits":
                await asyncio.sleep(3600)
            case "fails":
                raise RuntimeError("first\n\nConnection closed by peer")
            case "rejects":
                raise UserError("weights: not of this model")


class Processes:
    """Such actors. One that a test has ended or stopped is not used again."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._ended: list[int] = []

    def __call__(self, **kinds: str) -> dict[str, Any]:
        """``kinds``: what the actor of each name does."""
        taken = [self._idle.pop() if self._idle else ray.remote(num_cpus=0)(Actor).remote() for _ in kinds]
        handles = dict(zip(kinds, taken, strict=True))
        pids = ray.get([handles[name].become.remote(does) for name, does in kinds.items()])
        for handle, pid, does in zip(taken, pids, kinds.values(), strict=True):
            if does in ("dies", "stops"):
                self._ended.append(pid)
            else:
                self._idle.append(handle)
        return handles

    def close(self) -> None:
        for handle in self._idle:
            ray.kill(handle)
        for pid in self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def actors(ray_local) -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


def failure(handles: dict[str, Any], timeout_s: float) -> tuple[Exception, ActorsClient, float]:
    """What ``update_weights`` raised, and after how many seconds."""
    client = ActorsClient(handles, 1, timeout_s, staged=None)  # type: ignore[arg-type]  # nothing is sent
    client.begin()
    started = time.monotonic()
    with pytest.raises(Exception) as raised:  # the tests say which
        client.update_weights({})
    return raised.value, client, time.monotonic() - started


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(("does", "reason"), [("dies", "died"), ("stops", "no sign of life for 2 s")])
def test_a_death_or_a_stall_is_named_while_the_others_wait(actors: Processes, monkeypatch, does: str, reason: str):
    """Without waiting for the others, whom only a broken-off transfer lets go."""
    monkeypatch.setattr(module, "PING_S", 0.5)
    monkeypatch.setattr(module, "ALIVE_S", 2.0)
    handles = actors(a="waits", b=does, c="waits")
    error, client, seconds = failure(handles, timeout_s=600.0)
    assert isinstance(error, TransferFailed)
    assert (error.actor, error.gone) == ("b", True)
    assert reason in error.reason
    assert seconds < 20
    assert sorted(client.silent(0.2, apart_from={"b"})) == ["a", "c"]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_death_is_blamed_rather_than_what_it_breaks(actors: Processes):
    error, _, _ = failure(actors(a="fails", b="dies"), timeout_s=60.0)
    assert isinstance(error, TransferFailed)
    assert (error.actor, error.gone) == ("b", True)


@pytest.mark.slow
def test_one_that_lives_and_fails_is_not_gone_and_a_users_error_is_passed_on(actors: Processes):
    error, _, _ = failure(actors(a="fails", b="waits"), timeout_s=60.0)
    assert isinstance(error, TransferFailed)
    assert (error.actor, error.reason, error.gone) == ("a", "Connection closed by peer", False)
    error, _, _ = failure(actors(a="rejects", b="fails"), timeout_s=60.0)
    assert isinstance(error, UserError)


@pytest.mark.slow
def test_nobody_is_blamed_by_name_when_several_are_late(actors: Processes):
    released: list[int] = []
    handles = actors(a="waits", b="waits")
    client = ActorsClient(handles, 1, 1.0, staged=None)  # type: ignore[arg-type]  # nothing is sent
    client.when_failed = lambda: released.append(1)
    client.begin()
    with pytest.raises(TimeoutError, match="no answer within 1 s: a, b"):
        client.update_weights({})
    assert released == [1]
