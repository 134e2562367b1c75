"""The shared memory between an engine's processes. Without a name it goes with the last of them, however they end."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

SHARED = Path("/dev/shm")
MAPPED = re.compile(r" (\d+)\s+/dev/shm/\S")
"""In /proc/PID/maps: the inode of what lies in shared memory, whatever its name is by now."""
NAMES = ("psm_*", "sem.*", "vllm_dist_*")
"""Segments of Python's ``SharedMemory``, as vLLM's queues are; semaphores, as joblib has some; where vLLM's collectives
on CPUs with AVX-512 meet."""


def forget_names() -> list[Path]:
    """Unlink what this process and those below it have mapped; returns what was unlinked.

    For an engine that is up, whose processes open nothing by name any more. Processes of Ray are ended by SIGKILL, the
    trackers that would unlink these names too, so that they would outlive every engine. Linux alone; elsewhere nothing
    is found.
    """
    me = psutil.Process()
    mapped: set[int] = set()
    for process in (me, *me.children(recursive=True)):
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue  # it has ended, or there is no /proc
        mapped |= {int(inode) for inode in MAPPED.findall(maps)}
    forgotten = []
    for path in sorted(path for name in NAMES for path in SHARED.glob(name)):
        try:
            if path.stat().st_ino in mapped:
                path.unlink()
                forgotten.append(path)
        except OSError:
            continue  # somebody else's, or gone
    return forgotten
