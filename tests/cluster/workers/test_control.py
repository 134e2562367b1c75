"""The mailbox of a run: what a person asks for reaches the attempt that is going on."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from cluster.config.sections import ClusterConfig
from cluster.workers import control
from cluster.workers.control import Control
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from support.fake_workers import FakeWorker


def test_requests_are_answered_in_their_order_whoever_came_first():
    async def body() -> list[int]:
        mailbox = Control()
        await mailbox.want_actors(1)
        await mailbox.want_actors(-2)
        first = await mailbox.actors_wanted()
        second = await mailbox.actors_wanted()
        waiting = asyncio.ensure_future(mailbox.actors_wanted())
        await asyncio.sleep(0)
        await mailbox.want_actors(3)
        return [first, second, await waiting]

    assert asyncio.run(body()) == [1, -2, 3]


def test_a_request_goes_to_the_newest_who_waits():
    async def body() -> tuple[int, int]:
        mailbox = Control()
        of_the_failed_attempt = asyncio.ensure_future(mailbox.actors_wanted())
        await asyncio.sleep(0)
        of_the_next = asyncio.ensure_future(mailbox.actors_wanted())
        await asyncio.sleep(0)
        await mailbox.want_actors(2)
        return await of_the_failed_attempt, await of_the_next

    assert asyncio.run(body()) == (0, 2)


def test_a_run_that_ends_while_it_is_asked_is_one_line(monkeypatch):
    gone = FakeWorker("control-gone")

    class Calls:
        def answer(self, call: object) -> None:
            raise WorkerFailure("the actor died", died=True)

    monkeypatch.setattr(control, "ray_session", lambda config, needed_cpus: nullcontext())
    monkeypatch.setattr(control, "find_control", lambda run: gone)
    monkeypatch.setattr(control, "RayCalls", Calls)
    with pytest.raises(UserError, match="run gone: it ended before it could be asked"):
        control.change_actors("gone", 1, ClusterConfig(address="here"))
    assert gone.calls[0][:2] == ("want_actors", (1,))


def test_without_an_address_it_is_said_what_to_give(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"cluster.address: say which cluster"):
        control.change_actors("r", 1, ClusterConfig())
