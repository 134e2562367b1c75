"""The process of an evaluation ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

CHILD = """
import sys, time
from cluster.evaluation.worker import end_with_parent
end_with_parent(int(sys.argv[1]))
time.sleep(600)
"""
PARENT = (
    "import os, subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]);"
    "print(child.pid, flush=True); time.sleep(600)"
)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_engine_does_not_outlive_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert runs(child)
            os.kill(parent.pid, signal.SIGKILL)
            deadline = time.monotonic() + 120
            while runs(child) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not runs(child)
        finally:
            if runs(child):
                os.kill(child, signal.SIGKILL)
