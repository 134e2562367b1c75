"""Folders of Ray sessions that this program started: who uses one holds its lock; what is not held was left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDERS = Path("/tmp")
"""Ray's sockets live in these folders, and their paths must stay below 108 characters."""
PREFIX = "sapo-"
LOCK = "driver.lock"
RAY = "ray"
"""Ray lets everybody write to the folder that it is given. The one around it is its user's alone."""
ABANDONED_S = 600.0
"""A folder without a lock that is older was made again by a process of Ray that ended later than its driver."""


@contextmanager
def session_folder(folders: Path = FOLDERS) -> Iterator[Path]:
    """An empty folder for a Ray session, which only its user may enter, deleted afterwards. Those that killed drivers
    have left go first, and once more at the end: a process of Ray that ends later than its driver makes one again."""
    swept = sweep(folders)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folders))
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            (folder / RAY).mkdir()
            yield folder / RAY
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for again in swept:
            if not (again / LOCK).exists():
                shutil.rmtree(again, ignore_errors=True)


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
    for folder in folders.glob(f"{PREFIX}{'?' * 8}"):  # the names that ``mkdtemp`` gives
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def _is_abandoned(folder: Path) -> bool:
    """Whether it has no lock, and has had none for long."""
    try:
        known = folder.stat()
    except OSError:
        return False
    old = time.time() - known.st_mtime > ABANDONED_S
    return old and known.st_uid == os.getuid() and folder.is_dir() and not (folder / LOCK).exists()
