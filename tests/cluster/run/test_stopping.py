"""The first signal lets a run save, the second or the end of the grace time does not."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from cluster.run.stopping import Interrupted, LastResort, StopRequest, ended_by_sigterm
from contracts.errors import UserError

LOG = logging.getLogger("test")


@pytest.fixture
def last() -> Iterator[LastResort]:
    resort = LastResort(leave=lambda status: None)
    yield resort
    resort.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_is_noted_and_a_second_ends_the_run(
    signum: int, caplog: pytest.LogCaptureFixture, last: LastResort
) -> None:
    caplog.set_level(logging.INFO)
    stop = StopRequest(LOG, 30.0, last)
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as ended, stop.heeded():
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        time.sleep(0.05)
        assert stop.signum == signum
        os.kill(os.getpid(), signum)
        time.sleep(5)
    assert ended.value.signum == signum
    assert signal.getsignal(signum) == before
    assert [record.getMessage() for record in caplog.records] == [
        f"{signal.Signals(signum).name}: saving as soon as the step is done, then ending; once more ends it at once"
    ]


def test_the_grace_time_ends(last: LastResort) -> None:
    began = time.monotonic()
    with pytest.raises(Interrupted), StopRequest(LOG, 0.2, last).heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - began < 20


def test_a_run_that_ends_in_time_leaves_no_alarm(last: LastResort) -> None:
    stop = StopRequest(LOG, 60.0, last)
    with stop.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_part_that_dies_while_the_run_is_to_save_ends_it_without_another_attempt(last: LastResort) -> None:
    stop = StopRequest(LOG, 60.0, last)
    with pytest.raises(Interrupted) as ended, stop.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        raise RuntimeError("rank-1 was killed")
    assert ended.value.signum == signal.SIGTERM
    with pytest.raises(UserError), stop.heeded():
        raise UserError("disk full")
    with pytest.raises(RuntimeError), StopRequest(LOG, 60.0, last).heeded():
        raise RuntimeError("rank-1 was killed")


def test_between_attempts_sigterm_ends_the_run_at_once_and_in_order(last: LastResort) -> None:
    closed = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended, ended_by_sigterm(last):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)
    assert (ended.value.signum, closed) == (signal.SIGTERM, [True])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("twice", [False, True])
def test_what_can_not_end_in_order_just_ends(twice: bool, capsys: pytest.CaptureFixture[str]) -> None:
    left: list[int] = []
    last = LastResort(0.2, left.append)
    with pytest.raises(Interrupted):
        if twice:
            with StopRequest(LOG, 30.0, last).heeded():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        else:
            with ended_by_sigterm(last):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
    time.sleep(0.5)  # a part that waits for one that is gone
    assert left == [143]
    assert capsys.readouterr().err == "sapo: SIGTERM: not ended in order within 0.2 s; it just ends\n"


def test_what_ends_in_order_is_left_alone() -> None:
    left: list[int] = []
    last = LastResort(0.1, left.append)
    last.begin(signal.SIGTERM)
    last.close()
    time.sleep(0.3)
    assert left == []


@pytest.mark.slow
@pytest.mark.contract
def test_a_signal_ends_a_wait_for_ray(ray_local: None, last: LastResort) -> None:
    @ray.remote(num_cpus=0)
    def sleeps() -> None:
        time.sleep(60)

    call = sleeps.remote()
    for _ in range(2):
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted), StopRequest(LOG, 2.0, last).heeded():
        ray.wait([call], timeout=50)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted), ended_by_sigterm(last):
        ray.get(call, timeout=50)
    assert time.monotonic() - began < 30
    ray.cancel(call, force=True)
