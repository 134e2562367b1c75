"""The first signal lets a run save, the second or the end of the grace time does not."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
import ray

from cluster.run.stopping import Interrupted, StopRequest, ended_by_sigterm
from contracts.errors import UserError

LOG = logging.getLogger("test")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_is_noted_and_a_second_ends_the_run(signum: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stop = StopRequest(LOG, grace_s=30.0)
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


def test_the_grace_time_ends() -> None:
    began = time.monotonic()
    with pytest.raises(Interrupted), StopRequest(LOG, grace_s=0.2).heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - began < 20


def test_a_run_that_ends_in_time_leaves_no_alarm() -> None:
    stop = StopRequest(LOG, grace_s=60.0)
    with stop.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_part_that_dies_while_the_run_is_to_save_ends_it_without_another_attempt() -> None:
    stop = StopRequest(LOG, grace_s=60.0)
    with pytest.raises(Interrupted) as ended, stop.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        raise RuntimeError("rank-1 was killed")
    assert ended.value.signum == signal.SIGTERM
    with pytest.raises(UserError), stop.heeded():
        raise UserError("disk full")
    with pytest.raises(RuntimeError), StopRequest(LOG, grace_s=60.0).heeded():
        raise RuntimeError("rank-1 was killed")


def test_between_attempts_sigterm_ends_the_run_at_once_and_in_order() -> None:
    closed = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended, ended_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)
    assert (ended.value.signum, closed) == (signal.SIGTERM, [True])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.contract
def test_a_signal_ends_a_wait_for_ray(ray_local: None) -> None:
    @ray.remote(num_cpus=0)
    def sleeps() -> None:
        time.sleep(60)

    call = sleeps.remote()
    for _ in range(2):
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted), StopRequest(LOG, grace_s=2.0).heeded():
        ray.wait([call], timeout=50)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted), ended_by_sigterm():
        ray.get(call, timeout=50)
    assert time.monotonic() - began < 30
    ray.cancel(call, force=True)
