"""What the processes of a run that stands still are doing is in its log."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from cluster.workers import stacks as module
from cluster.workers.ray_calls import WorkerFailure
from cluster.workers.stacks import log_stacks
from contracts.stacks import stacks
from support.fake_workers import FakeCall, FakeCalls


def test_every_thread_is_told_with_where_it_is() -> None:
    over = threading.Event()

    def wait_for_the_test() -> None:
        over.wait(30)

    thread = threading.Thread(target=wait_for_the_test, name="a thread that waits")
    thread.start()
    try:
        told = stacks()
    finally:
        over.set()
        thread.join()
    ours = told[told.index("thread a thread that waits") :].split("\nthread ")[0]
    assert "in wait_for_the_test" in ours
    assert "thread MainThread" in told


def test_who_answers_is_logged_and_who_does_not_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STACKS_S", 0.05)
    caplog.set_level(logging.DEBUG)
    asked: Any = {name: FakeCall(name) for name in ("busy", "stopped", "dead")}
    asked["busy"].answer("in a collective")
    asked["dead"].fail(WorkerFailure("the process is gone", died=True))
    calls = FakeCalls(*[lambda: None] * 1_000_000)
    assert log_stacks(asked, calls, logging.getLogger("test"), "after 5 s") == ["stopped"]
    assert [record.getMessage() for record in caplog.records] == [
        "busy after 5 s:\nin a collective",
        "stopped after 5 s:\ndoes not answer",
        "dead after 5 s:\nthe process is gone",
    ]
