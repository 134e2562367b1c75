"""The mailbox of a run: what a person asks for reaches the attempt that is going on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.sections import ClusterConfig
from cluster.workers import control
from cluster.workers.control import Control, Request
from cluster.workers.inbox import Asked, Inbox
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from support.fake_workers import FakeCall, FakeCalls, FakeMailbox, FakeWorker


def test_requests_are_answered_in_their_order_whoever_came_first():
    async def body() -> list[Request | None]:
        mailbox = Control()
        await mailbox.ask(Request("actors", 1))
        await mailbox.ask(Request("checkpoint"))
        first = await mailbox.next_request()
        assert first
        second = await mailbox.next_request(first.key)
        assert second
        waiting = asyncio.ensure_future(mailbox.next_request(second.key))
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


def test_a_request_stays_until_the_inbox_has_it_and_is_one_however_often_it_is_sent():
    first, second = Request("actors", 1), Request("stop")

    async def body() -> list[Request | None]:
        mailbox = Control()
        for request in (first, first, second):
            await mailbox.ask(request)
        handed = [await mailbox.next_request(), await mailbox.next_request()]  # the answer was lost
        handed.append(await mailbox.next_request(first.key))
        await mailbox.ask(first)
        return [*handed, await mailbox.next_request(second.key)]

    assert asyncio.run(body()) == [first, first, second, first]


def test_an_inbox_keeps_what_was_asked_until_it_is_acted_on():
    mailbox = FakeWorker("control")
    inbox = Inbox(FakeMailbox(mailbox), FakeCalls())
    inbox.poll()
    more = Request("actors", 2)
    for request in (more, more, Request("checkpoint"), Request("actors", -1), Request("stop"), Request("actors", 0)):
        mailbox.last("next_request").answer(request)
        inbox.poll()
    assert mailbox.calls[1][1] == mailbox.calls[2][1] == (more.key,), "the mailbox may forget it"
    assert [inbox.next_change() for _ in range(3)] == [2, -1, 0]
    assert [inbox.checkpoint_due(), inbox.checkpoint_due()] == [True, False]
    assert inbox.stop_asked


def test_an_inbox_opens_its_mailbox_again_when_it_died():
    mailbox = FakeMailbox(FakeWorker("first"))
    inbox = Inbox(mailbox, FakeCalls())
    mailbox.worker.last("next_request").fail(WorkerFailure("killed", died=True))
    for _ in range(2):  # Ray has not let go of its name yet; nobody waits for that
        inbox.poll()
        assert inbox.awaited is None
    mailbox.again = FakeWorker("second")
    inbox.poll()
    assert mailbox.worker.name == "second" and inbox.awaited is not None
    mailbox.worker.last("next_request").answer(None)  # to an inbox that a newer one took the place of
    inbox.poll()
    assert not inbox.stop_asked
    mailbox.worker.last("next_request").answer(Request("stop"))
    inbox.poll()
    assert inbox.stop_asked


@pytest.fixture
def cluster(monkeypatch) -> list[FakeWorker | None]:
    """What is found at the next looks for the mailbox; the last again and again. No time passes but in sleep."""
    found: list[FakeWorker | None] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def find(run: str) -> FakeWorker:
        mailbox = found.pop(0) if len(found) > 1 else found[0]
        if mailbox is None:
            raise UserError(f"run {run}: no such run is going on at this cluster")
        return mailbox

    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(control, "ray_session", lambda config, needed_cpus, auth: nullcontext())
    monkeypatch.setattr(control, "find_control", find)
    monkeypatch.setattr(control, "RayCalls", FakeCalls)
    return found


def dead(name: str) -> FakeWorker:
    return FakeWorker(name, failures={"ask": WorkerFailure("the actor died", died=True)})


MORE = Request("actors", 1)


def test_a_request_reaches_a_mailbox_that_died_and_was_opened_again(cluster):
    again = FakeWorker("again", answers={"ask": None})
    cluster += [dead("first"), dead("first"), None, again]
    control.ask("mine", MORE, ClusterConfig(address="here"))
    assert [call[:2] for call in again.calls] == [("ask", (MORE,))]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([None], "run mine: no such run is going on at this cluster"),
        ([dead("gone"), None], "run mine: it ended before it could be asked"),
        ([dead("always")], "run mine: its mailbox cannot be reached: the actor died; it may have been heard"),
    ],
)
def test_a_request_that_reaches_nobody_is_one_line(cluster, found, message):
    cluster += found
    with pytest.raises(UserError) as refused:
        control.ask("mine", MORE, ClusterConfig(address="here"))
    assert str(refused.value) == message


def test_a_mailbox_that_stands_still_is_not_waited_for_for_ever(monkeypatch):
    class Calls(FakeCalls):
        def first_done(self, calls: Sequence[FakeCall], timeout_s: float) -> list[FakeCall]:
            assert timeout_s == 20.0
            return []

    monkeypatch.setattr(control, "RayCalls", Calls)
    with pytest.raises(WorkerFailure, match="no answer within 20 s"):
        control.answer_of(FakeWorker("still").call("ask", MORE), 20.0)


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
    first = Inbox(FakeMailbox(mailbox), FakeCalls(), asked)
    stop = Request("stop")
    for request in (Request("actors", 2), stop):
        mailbox.last("next_request").answer(request)
        first.poll()
    first.changed(actors=1)
    second = Inbox(FakeMailbox(mailbox), FakeCalls(), asked)
    assert mailbox.calls[-1][:2] == ("next_request", (stop.key,))
    mailbox.last("next_request").answer(stop)  # the mailbox had not heard that it was taken
    second.poll()
    assert (second.next_change(), second.stop_asked, asked.more_actors, len(asked.taken)) == (2, True, 1, 2)
