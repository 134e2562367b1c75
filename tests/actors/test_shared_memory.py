"""Shared memory of an engine has no name once the engine is up: nothing is left of it, however it ends."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from actors.shared_memory import forget_names


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
