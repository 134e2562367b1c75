"""Folders of Ray sessions that this program started: who uses one holds its lock; what is not held was left behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDERS = Path("/tmp")
"""Ray's sockets live in these folders, and their paths must stay below 108 characters."""
PREFIX = "sapo-"
LOCK = "driver.lock"


@contextmanager
def session_folder(folders: Path = FOLDERS) -> Iterator[Path]:
    """An empty folder for a Ray session, deleted afterwards. Those that killed drivers have left go first."""
    sweep(folders)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folders))
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folders: Path = FOLDERS) -> list[Path]:
    """Delete the folders whose driver has ended; returns them."""
    swept = []
    for lock in folders.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with FileLock(lock).acquire(timeout=0):
                shutil.rmtree(lock.parent, ignore_errors=True)
                swept.append(lock.parent)
        except (Timeout, OSError):
            continue  # its driver runs, or it is another user's
    return swept
