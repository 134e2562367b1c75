"""The mailbox of a run: what a person asks for reaches the attempt that is going on."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

from cluster.config.sections import ClusterConfig
from cluster.workers import control
from cluster.workers.control import Control, Request
from cluster.workers.inbox import Asked, Inbox
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from support.fake_workers import FakeCalls, FakeWorker


def test_requests_are_answered_in_their_order_whoever_came_first():
    async def body() -> list[Request | None]:
        mailbox = Control()
        await mailbox.ask(Request("actors", 1))
        await mailbox.ask(Request("checkpoint"))
        first = await mailbox.next_request()
        second = await mailbox.next_request()
        waiting = asyncio.ensure_future(mailbox.next_request())
        await asyncio.sleep(0)
        await mailbox.ask(Request("stop"))
        return [first, second, await waiting]

    assert asyncio.run(body()) == [Request("actors", 1), Request("checkpoint"), Request("stop")]


def test_a_request_goes_to_the_newest_who_waits():
    async def body() -> tuple[Request | None, Request | None]:
        mailbox = Control()
        of_the_failed_attempt = asyncio.ensure_future(mailbox.next_request())
        await asyncio.sleep(0)
        of_the_next = asyncio.ensure_future(mailbox.next_request())
        await asyncio.sleep(0)
        await mailbox.ask(Request("actors", 2))
        return await of_the_failed_attempt, await of_the_next

    assert asyncio.run(body()) == (None, Request("actors", 2))


def test_an_inbox_keeps_what_was_asked_until_it_is_acted_on():
    mailbox = FakeWorker("control")
    inbox = Inbox(lambda: mailbox, FakeCalls())
    inbox.poll()
    for request in (Request("actors", 2), Request("checkpoint"), Request("actors", -1), Request("stop")):
        mailbox.last("next_request").answer(request)
        inbox.poll()
    assert inbox.actor_changes() == [2, -1]
    assert inbox.actor_changes() == []
    assert [inbox.checkpoint_due(), inbox.checkpoint_due()] == [True, False]
    assert inbox.stop_asked


def test_an_inbox_opens_its_mailbox_again_when_it_died():
    mailboxes = [FakeWorker("first"), FakeWorker("second")]
    waiting = iter(mailboxes)
    inbox = Inbox(lambda: next(waiting), FakeCalls())
    mailboxes[0].last("next_request").fail(WorkerFailure("killed", died=True))
    inbox.poll()
    mailboxes[1].last("next_request").answer(None)  # to an inbox that a newer one took the place of
    waiting = iter(mailboxes)
    inbox.poll()
    assert not inbox.stop_asked


def test_a_run_that_ends_while_it_is_asked_is_one_line(monkeypatch):
    gone = FakeWorker("control-gone")

    class Calls:
        def answer(self, call: object) -> None:
            raise WorkerFailure("the actor died", died=True)

    monkeypatch.setattr(control, "ray_session", lambda config, needed_cpus, auth: nullcontext())
    monkeypatch.setattr(control, "find_control", lambda run: gone)
    monkeypatch.setattr(control, "RayCalls", Calls)
    with pytest.raises(UserError, match="run gone: it ended before it could be asked"):
        control.ask("gone", Request("actors", 1), ClusterConfig(address="here"))
    assert gone.calls[0][:2] == ("ask", (Request("actors", 1),))


def test_without_an_address_it_is_said_what_to_give(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run r: no run folder runs/r here; .*--address or RAY_ADDRESS"):
        control.ask("r", Request("stop"), ClusterConfig())
    (tmp_path / "runs" / "r").mkdir(parents=True)
    with pytest.raises(UserError, match="run r: it is not going on"):
        control.ask("r", Request("stop"), ClusterConfig())


def test_a_mailbox_keeps_the_newest_board():
    async def body() -> list[object]:
        mailbox = Control()
        boards: list[Any] = ["first", "second"]
        seen: list[object] = [await mailbox.board()]
        for board in boards:
            await mailbox.post(board)
        return [*seen, await mailbox.board()]

    assert asyncio.run(body()) == [None, "second"]


def test_a_request_outlives_the_attempt_in_which_it_came():
    asked, mailbox = Asked(), FakeWorker("mailbox")
    first = Inbox(lambda: mailbox, FakeCalls(), asked)
    mailbox.last("next_request").answer(Request("stop"))
    first.poll()
    first.close()
    assert Inbox(lambda: mailbox, FakeCalls(), asked).stop_asked
