"""A group's first failure is the one that is raised, in the worker's own words where it has any."""

from __future__ import annotations

import pytest

from cluster.workers.ray_calls import GRACE_S, WorkerFailure, wait_for, wait_for_all
from contracts.errors import UserError
from support.fake_workers import FakeCall, FakeCalls


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_answers_come_in_the_order_of_the_calls():
    a, b = FakeCall("a"), FakeCall("b")
    calls = FakeCalls(lambda: b.answer(2), lambda: a.answer(1))
    assert wait_for_all([a, b], calls) == [1, 2]


def test_a_rank_that_raises_is_reported_though_the_others_never_answer():
    stuck, raised, clock = FakeCall("rank-0"), FakeCall("rank-1"), Clock()

    def grace_is_over() -> None:
        clock.now += GRACE_S

    calls = FakeCalls(lambda: raised.fail(UserError("learner: token id 9 is outside the vocabulary")), grace_is_over)
    with pytest.raises(UserError, match="token id 9"):
        wait_for_all([stuck, raised], calls, clock=clock)
    assert clock.now == GRACE_S


def test_a_death_is_told_rather_than_the_broken_collective_that_it_left_behind():
    broken, dead, clock = FakeCall("rank-0"), FakeCall("rank-1"), Clock()
    calls = FakeCalls(
        lambda: broken.fail(WorkerFailure("RuntimeError: connection closed by peer", died=False)),
        lambda: dead.fail(WorkerFailure("rank-1 was killed", died=True)),
    )
    with pytest.raises(WorkerFailure, match="rank-1 was killed"):
        wait_for_all([broken, dead], calls, clock=clock)


def test_the_users_own_error_is_told_before_a_death():
    dead, own = FakeCall("rank-0"), FakeCall("rank-1")
    calls = FakeCalls(
        lambda: dead.fail(WorkerFailure("rank-0 was killed", died=True)),
        lambda: own.fail(UserError("lower optimizer.lr")),
    )
    with pytest.raises(UserError, match=r"lower optimizer.lr"):
        wait_for_all([dead, own], calls, clock=Clock())


def test_of_equal_failures_the_first_is_told():
    first, second = FakeCall("rank-0"), FakeCall("rank-1")
    calls = FakeCalls(
        lambda: second.fail(WorkerFailure("OutOfMemoryError", died=False)),
        lambda: first.fail(WorkerFailure("RuntimeError: timeout", died=False)),
    )
    with pytest.raises(WorkerFailure, match="OutOfMemoryError"):
        wait_for_all([first, second], calls, clock=Clock())


def test_who_waits_looks_around_between_ticks():
    call, ticks = FakeCall("draw"), []
    calls = FakeCalls(lambda: None, lambda: None, lambda: call.answer("batch"))
    assert wait_for(call, calls, tick=lambda: ticks.append(1)) == "batch"
    assert len(ticks) == 2


def test_a_call_that_is_overdue_is_given_up_with_what_is_said_of_it():
    done, stuck, clock = FakeCall("done"), FakeCall("stuck"), Clock()
    done.answer(1)

    def time_passes() -> None:
        clock.now += 20.0

    calls = FakeCalls(time_passes, time_passes)
    with pytest.raises(WorkerFailure, match="position 1 is stuck") as given_up:
        wait_for_all([done, stuck], calls, 30.0, lambda missing: f"position {missing[0]} is stuck", clock)
    assert given_up.value.died
    assert clock.now == 40.0
