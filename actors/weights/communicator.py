"""NCCL communicators of the weight transfer that can be given up.

NCCL waits for ever for a peer that is gone, inside a kernel, and so do the peers of one that gives up. So a
communicator is opened on a thread that can be left behind, aborted from another thread than the one that waits, and
whoever aborts leaves word in the group's store, where the others look while they wait.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

JOIN_S = 60.0
"""Longest that the members may wait for each other when the communicator is opened."""
ABORT_S = 5.0
"""Longest wait for NCCL to abort; vLLM waits as long."""
LOOK_S = 0.5
"""Between two looks at the store."""
GIVEN_UP = "sapo/given-up"
"""Key in the store that the sender, rank 0, keeps for the group."""
_GIVING_UP = threading.Lock()


def open_within(limit_s: float, open_it: Callable[[], Any]) -> Any:
    """The communicator that ``open_it`` returns. One that is opened too late is given up at once.

    Raises:
        TimeoutError: a member did not come.
        RuntimeError: NCCL's library can't be loaded.
    """
    gpu = torch.accelerator.is_available()
    device = torch.accelerator.current_device_index() if gpu else 0
    lock, finished, given_up = threading.Lock(), threading.Event(), False
    opened: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if gpu:
                torch.accelerator.set_device_index(device)  # every thread has its own
            communicator = open_it()
        except BaseException as error:
            errors.append(error)
            finished.set()
            return
        with lock:
            opened.append(communicator)
            finished.set()
            if given_up:
                give_up(communicator)

    # NCCL can't be told to stop waiting before there is a communicator: the thread may stay behind.
    threading.Thread(target=work, name="open-nccl", daemon=True).start()
    finished.wait(limit_s)
    if errors:
        raise errors[0]
    with lock:
        if not opened:
            given_up = True
            raise TimeoutError(f"weights: not all members joined NCCL's group within {limit_s:g} s")
    if opened[0].disabled:
        raise RuntimeError("weights: vLLM could not load NCCL's library")
    return opened[0]


def give_up(communicator: Any) -> None:
    """Abort it, whoever waits in it; may be called again, and of one that is not in use.

    Args:
        communicator: vLLM's ``PyNcclCommunicator``.
    """
    with _GIVING_UP:
        if communicator.disabled:
            return
        # First: what the abort lets go on must not touch what the abort frees. vLLM's ``destroy`` sets it last.
        communicator.disabled = True
    with contextlib.suppress(RuntimeError):  # the sender, whose store it is, is gone
        communicator.group.store.set(GIVEN_UP, "1")

    def abort() -> None:
        with torch.accelerator.device_index(communicator.device.index):
            communicator.nccl.ncclCommAbort(communicator.comm)

    aborting = threading.Thread(target=abort, name="abort-nccl", daemon=True)
    aborting.start()
    aborting.join(ABORT_S)
    communicator.available = False


@contextlib.contextmanager
def giving_up_with_the_others(communicator: Any) -> Iterator[None]:
    """Around what waits in the communicator: given up when another member has, or when the sender is gone.

    Raises:
        RuntimeError: it was given up.
    """
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(LOOK_S):
            if _another_gave_up(communicator):
                give_up(communicator)
                return

    looking = threading.Thread(target=look, name="watch-nccl", daemon=True)
    looking.start()
    try:
        yield
    finally:
        finished.set()
        looking.join(ABORT_S)
    validate_whole(communicator)


def validate_whole(communicator: Any) -> None:
    """After a broadcast: one that is let go by an abort returns as if nothing was wrong, and has carried nothing.

    Raises:
        RuntimeError: the communicator was given up.
    """
    if communicator.disabled:
        raise RuntimeError("weights: the transfer was broken off")


def _another_gave_up(communicator: Any) -> bool:
    try:
        return bool(communicator.group.store.check([GIVEN_UP]))
    except RuntimeError:
        return True  # the store has gone with the sender
