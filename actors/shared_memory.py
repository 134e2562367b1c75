"""The shared memory between an engine's processes. Without a name it goes with the last of them, however they end."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

SEGMENT = re.compile(r"(/dev/shm/psm_\S+)$", re.MULTILINE)
"""In /proc/PID/maps: a segment of Python's ``SharedMemory`` that still has its name. vLLM's queues are such."""


def forget_names() -> list[Path]:
    """Unlink what this process and those below it have mapped; returns what was unlinked.

    For an engine that is up, whose processes open nothing by name any more. Processes of Ray are ended by SIGKILL, the
    tracker that would unlink these segments too, so that they would outlive every engine. Linux alone; elsewhere
    nothing is found.
    """
    me = psutil.Process()
    forgotten = []
    for process in (me, *me.children(recursive=True)):
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue  # it has ended, or there is no /proc
        for name in sorted(set(SEGMENT.findall(maps))):
            try:
                Path(name).unlink()
            except OSError:
                continue
            forgotten.append(Path(name))
    return forgotten
