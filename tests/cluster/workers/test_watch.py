"""An actor that stands still is given up; one that is slow, idle or gone is not."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import ActorStatus
from cluster.workers.patience import Patience
from cluster.workers.ray_calls import WorkerFailure
from cluster.workers.watch import Watch
from support.fake_workers import FakeCalls, FakeWorker


class Watched:
    """A watch over an actor that the test plays; ``after`` lets time pass and looks again."""

    def __init__(self, stall_s: float = 60.0) -> None:
        self.worker, self.now = FakeWorker("actor-0"), 0.0
        worker: Any = self.worker
        self.watch = Watch(worker, FakeCalls(), stall_s, lambda: self.now)

    def after(self, seconds: float, tokens: int | None = None, in_flight: int = 4) -> str:
        """``tokens``: what the actor answers; None: nothing."""
        self.now += seconds
        call = self.worker.last("status")
        if tokens is not None and not call.done:
            call.answer(ActorStatus(tokens, in_flight, 0.0))
        return self.watch.complaint()


def test_patience_follows_what_was_measured():
    patience = Patience(30.0)
    assert patience.limit_s == 180.0
    patience.observe(2.0)
    assert patience.limit_s == 30.0
    patience.observe(50.0)
    patience.observe(1.0)
    assert patience.limit_s == 500.0


def test_an_actor_that_does_not_answer_is_given_up():
    watched = Watched()
    assert watched.after(1, tokens=5) == ""
    assert watched.after(10, tokens=9) == ""
    assert watched.after(10) == ""
    assert watched.after(109) == "no answer for 129 s"


def test_an_actor_whose_requests_do_not_end_is_given_up():
    watched = Watched()
    said = [watched.after(15, tokens=5) for _ in range(12)]
    assert said[:3] == ["", "", ""]
    assert "nothing finished for " in said[-1]


def test_an_actor_that_has_nothing_to_do_is_not():
    watched = Watched()
    assert [watched.after(100, tokens=0, in_flight=0) for _ in range(20)] == [""] * 20


def test_an_actor_that_was_always_slow_is_not():
    watched = Watched(stall_s=10.0)
    assert [watched.after(50, tokens=tokens) for tokens in range(1, 6)] == [""] * 5
    assert watched.after(300) == ""
    assert watched.after(300) != ""


def test_one_that_died_is_left_to_its_run():
    watched = Watched()
    watched.worker.last("status").fail(WorkerFailure("gone", died=True))
    assert watched.after(1e6) == ""


@pytest.mark.parametrize("answers", [3, 30])
def test_it_is_not_asked_more_often_than_every_ten_seconds(answers: int):
    watched = Watched()
    for number in range(answers):
        watched.after(1, tokens=number + 1)
    assert len(watched.worker.calls) == 1 + answers // 10
