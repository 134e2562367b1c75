"""Shared memory of an engine has no name once the engine is up: nothing is left of it, however it ends."""

from __future__ import annotations

import ctypes
import os
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from actors.shared_memory import forget_names


def test_semaphores_lose_their_names_and_still_count() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sem_open.restype = ctypes.c_void_p
    name = f"loky-test-{os.getpid()}"
    semaphore = ctypes.c_void_p(libc.sem_open(f"/{name}".encode(), os.O_CREAT | os.O_EXCL, 0o600, 1))
    assert semaphore.value
    path = Path(f"/dev/shm/sem.{name}")
    assert path.exists()
    assert forget_names() == [path]
    assert not path.exists()
    assert (libc.sem_trywait(semaphore), libc.sem_trywait(semaphore)) == (0, -1)
    libc.sem_close(semaphore)


def test_mapped_segments_lose_their_names_and_keep_their_bytes() -> None:
    ours = SharedMemory(create=True, size=4096)
    path = Path("/dev/shm") / ours.name.lstrip("/")
    others = Path("/dev/shm/psm_of_another_program")
    others.touch()
    assert ours.buf
    try:
        ours.buf[7] = 42
        assert forget_names() == [path]
        assert not path.exists()
        assert ours.buf[7] == 42
        assert forget_names() == []
        assert others.exists()
    finally:
        others.unlink()
        ours.close()
        with pytest.raises(FileNotFoundError):
            ours.unlink()
