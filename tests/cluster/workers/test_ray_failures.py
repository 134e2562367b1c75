"""What Ray's errors mean: the user's own words, a death, or a bug."""

from __future__ import annotations

import time

import psutil
import pytest
import ray
import torch

from benchmarks.chaos.faults import parts_of
from cluster.workers.control import Mailbox, Request, find_control
from cluster.workers.inbox import Asked, Inbox
from cluster.workers.ray_calls import RayCalls, Worker, WorkerFailure, failure_of
from contracts.errors import UserError


class Part:
    def __init__(self, error: Exception | None = None) -> None:
        if error:
            raise error

    def fail(self, error: Exception) -> None:
        raise error

    def pass_on(self, refs: list[ray.ObjectRef]) -> object:
        return ray.get(refs)


def started(error: Exception | None = None) -> Worker:
    return Worker("part", ray.remote(Part).options(num_cpus=0).remote(error))


@pytest.mark.slow
def test_failures_come_back_in_the_program_s_terms(ray_local):
    calls, part = RayCalls(), started()
    with pytest.raises(UserError, match=r"^lower optimizer.lr$"):
        calls.answer(part.call("fail", UserError("lower optimizer.lr")))
    with pytest.raises(WorkerFailure) as raised:
        calls.answer(part.call("fail", ValueError("seven")))
    assert (raised.value.reason, raised.value.died) == ("ValueError: seven", False)
    part.kill()
    deadline = time.monotonic() + 60
    while True:  # a call may still come before its death
        with pytest.raises(WorkerFailure) as killed:
            calls.answer(part.call("fail", ValueError("seven")))
        if killed.value.died or time.monotonic() > deadline:
            break
    assert killed.value.died and "\n" not in killed.value.reason and not killed.value.elsewhere
    waiting = started()
    with pytest.raises(WorkerFailure) as heard:  # a part that waited for the dead one tells of its death
        calls.answer(waiting.call("pass_on", [part.call("fail", ValueError("seven"))]))
    assert heard.value.died and heard.value.elsewhere
    with pytest.raises(UserError, match=r"^model.path m: no such folder$"):
        calls.answer(started(UserError("model.path m: no such folder")).call("fail", ValueError()))
    with pytest.raises(WorkerFailure) as unborn:
        calls.answer(started(ValueError("eight")).call("fail", ValueError()))
    assert (unborn.value.reason, unborn.value.died) == ("ValueError: eight", False)


GLOO = "[/pytorch/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:10659: Connection reset by peer"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3699, remote process exited or there was an error\nncclRemoteError: x"


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError(GLOO), True),
        (torch.distributed.DistBackendError(NCCL), True),
        (torch.distributed.DistNetworkError("recvValue failed: Connection reset by peer"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("seven"), False),
    ],
)
def test_a_connection_that_broke_is_told_from_an_error_of_the_computation(error: Exception, broken: bool):
    failure = failure_of(ray.exceptions.RayTaskError("step", "Traceback", error))
    assert isinstance(failure, WorkerFailure)
    assert (failure.died, failure.broken) == (False, broken)


@pytest.mark.slow
def test_a_runs_name_is_taken_from_its_claim_to_its_end(ray_local):
    mailbox = Mailbox("taken")
    with pytest.raises(UserError, match="name taken: a run of this name is going on at this cluster"):
        Mailbox("taken")
    mailbox.close()
    mailbox.close()  # it may have died before
    Mailbox("taken").close()


@pytest.mark.slow
def test_a_mailbox_lives_as_long_as_its_run_and_is_opened_again_when_it_dies(ray_local):
    mailbox, calls, asked = Mailbox("lives"), RayCalls(), Asked()
    first = mailbox.worker.handle._actor_id
    inbox = Inbox(mailbox, calls, asked)

    def taken(request: Request) -> int:
        calls.answer(find_control("lives").call("ask", request))
        deadline = time.monotonic() + 60
        while not (change := inbox.next_change()) and time.monotonic() < deadline:
            inbox.poll()
        return change

    assert [taken(Request("actors", count)) for count in (1, 2)] == [1, 2]
    inbox = Inbox(mailbox, calls, asked)  # of the next attempt
    assert taken(Request("actors", 3)) == 3
    assert find_control("lives").handle._actor_id == mailbox.worker.handle._actor_id == first

    assert mailbox.open_again()  # it seemed to have died
    assert mailbox.worker.handle._actor_id == first
    (process,) = parts_of([psutil.Process()], "mailbox")
    process.kill()
    deadline = time.monotonic() + 60
    while mailbox.worker.handle._actor_id == first and time.monotonic() < deadline:
        inbox.poll()
    assert taken(Request("actors", 4)) == 4
    mailbox.close()
