"""Communicators are opened within a time limit, given up from another thread, and never used or freed afterwards."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from actors.weights.communicator import give_up, giving_up_with_the_others, open_within
from support.nccl import FakeNccl, Group, one_stream


def test_giving_up_lets_a_waiting_broadcast_go_and_aborts_once():
    library, group = FakeNccl(), Group(2)
    sender = group.join(library, 0)
    errors: list[BaseException] = []

    def broadcast() -> None:
        try:
            for _ in range(5):  # nobody takes them
                sender.broadcast(torch.ones(8), src=0, stream=SimpleNamespace(cuda_stream=0))
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=broadcast)
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()
    several = [threading.Thread(target=give_up, args=(sender,)) for _ in range(4)]
    for thread in several:
        thread.start()
    waiting.join(5)
    for thread in several:
        thread.join(5)
    assert not waiting.is_alive()
    assert (errors, library.open) == ([], {})


@pytest.mark.parametrize("gone", [False, True])
def test_a_receiver_lets_go_when_the_sender_gave_up_or_is_gone(gone):
    library, group = FakeNccl(), Group(2)
    sender, receiver = group.join(library, 0), group.join(library, 1)

    def end() -> None:
        if gone:
            group.store.gone = True  # a killed process aborts nothing
        else:
            give_up(sender)

    threading.Timer(0.2, end).start()
    started = time.monotonic()
    with one_stream(), pytest.raises(RuntimeError, match="broken off"), giving_up_with_the_others(receiver):
        receiver.broadcast(torch.zeros(8), src=0, stream=SimpleNamespace(cuda_stream=0))
    assert time.monotonic() - started < 5
    assert receiver.comm not in library.open


def test_nothing_is_said_where_nobody_gave_up():
    library, group = FakeNccl(), Group(2)
    sender, receiver = group.join(library, 0), group.join(library, 1)
    stream, got = SimpleNamespace(cuda_stream=0), torch.zeros(8)
    with giving_up_with_the_others(receiver):
        sender.broadcast(torch.arange(8.0), src=0, stream=stream)
        receiver.broadcast(got, src=0, stream=stream)
    assert got.tolist() == list(range(8))
    assert len(library.open) == 2


def test_one_that_is_opened_too_late_is_given_up():
    library, group, late = FakeNccl(), Group(2), threading.Event()

    def open_late() -> object:
        late.wait(10)
        return group.join(library, 0)

    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        open_within(0.1, open_late)
    late.set()
    deadline = time.monotonic() + 5
    while library.count == 0 or library.open:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_opening_raises_is_raised_and_a_missing_library_is_named():
    with pytest.raises(OSError, match="no route"):
        open_within(5, _raise)
    with pytest.raises(RuntimeError, match="NCCL's library"):
        open_within(5, lambda: SimpleNamespace(disabled=True))


def _raise() -> None:
    raise OSError("no route")
