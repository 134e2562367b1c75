"""What can happen to a run, and to whom: processes by their titles, their connections and disks, checkpoints."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TITLES = {
    "rank": "LearnerRank",
    "actor": "GenerationActor",
    "coordinator": "Coordinator",
    "shard": "Shard",
    "mailbox": "Control",
}
"""Classes of a run's parts; Ray has them in the titles of its processes."""
PAUSE_S = (2.0, 10.0)
"""How long a process is held up: all of its messages come late."""
FULL_S = 6.0
"""How long a disk is full."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to one part of a run."""

    kind: str
    """kill: SIGKILL. stop: SIGSTOP, and it never goes on. pause: it goes on after a while. drop: its TCP connections
    break. full: it can't write files for a while. damage: a bit of the newest checkpoint flips, then a rank dies.
    term: SIGTERM. preempt: all generation actors stop, and while the driver waits for them its process group gets
    SIGTERM."""
    part: str

    def __str__(self) -> str:
        return f"{self.kind} {self.part}"

    @property
    def ends_attempt(self) -> bool:
        """Whether what it hits can't be replaced beside the others. A step or two may come before that is noticed."""
        return self.kind in ("kill", "stop", "damage") and self.part in ("rank", "coordinator", "shard")


PROCESSES = ("rank", "actor", "coordinator", "shard")
ALL = [
    *(Fault("kill", part) for part in (*TITLES, "driver")),
    *(Fault("stop", part) for part in PROCESSES),
    *(Fault("pause", part) for part in PROCESSES),
    *(Fault("drop", part) for part in ("rank", "actor", "coordinator")),
    *(Fault("full", part) for part in ("rank", "shard")),
    Fault("damage", "rank"),
    Fault("term", "driver"),
    Fault("preempt", "driver"),
]
OF_CLUSTERS = [Fault("kill", "node")]
"""Beside these, where there are several nodes."""


def parts_of(roots: Sequence[psutil.Process], part: str) -> list[psutil.Process]:
    """The processes of one part of a run, below these."""
    title = re.compile(rf"ray::.*\b{TITLES[part]}\b")
    below = [process for root in roots if runs(root) for process in _children(root)]
    return sorted({p for p in below if title.match(_title(p))}, key=lambda process: process.pid)


def strike(fault: Fault, roots: Sequence[psutil.Process], checkpoints: Path, chance: random.Random) -> bool:
    """Let it happen to a process below ``roots``; False: there was nobody to hit."""
    victims = parts_of(roots, fault.part)
    if not victims:
        return False
    victim = chance.choice(victims)
    try:
        return _hit(fault.kind, victim, checkpoints, chance)
    except psutil.NoSuchProcess:
        return False


def _hit(kind: str, victim: psutil.Process, checkpoints: Path, chance: random.Random) -> bool:
    match kind:
        case "kill":
            victim.kill()
        case "stop":
            victim.suspend()
        case "pause":
            victim.suspend()
            _later(chance.uniform(*PAUSE_S), victim.resume)
        case "drop":
            return _drop_connections(victim)
        case "full":
            hard = resource.prlimit(victim.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (1, hard))
            _later(FULL_S, lambda: resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (hard, hard)))
        case "damage":
            if not _damage(checkpoints, chance):
                return False
            victim.kill()
    return True


def whole_checkpoints(checkpoints: Path) -> list[int]:
    """Their steps, in order."""
    names = [path.name.removeprefix("step-") for path in checkpoints.glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def wait_until(condition: Callable[[], bool], process: psutil.Process, timeout_s: float) -> bool:
    """Whether ``condition`` came true while the process ran."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and runs(process):
        if condition():
            return True
        time.sleep(0.1)
    return False


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _later(seconds: float, action: Callable[[], object]) -> None:
    def act() -> None:
        with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile
            action()

    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _drop_connections(victim: psutil.Process) -> bool:
    """As a switch that forgets them would: both ends see an error. Needs root and ``ss``; Linux alone."""
    found = [c for c in victim.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    for connection in found:
        ends = ["sport", "=", f":{connection.laddr.port}", "dport", "=", f":{connection.raddr.port}"]
        subprocess.run(["ss", "-K", "-t", *ends], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return bool(found)


def _damage(checkpoints: Path, chance: random.Random) -> bool:
    """Flip a bit of a file of the newest checkpoint."""
    steps = whole_checkpoints(checkpoints)
    if len(steps) < 2:  # a run without any valid one ends, and says so
        return False
    newest = checkpoints / f"step-{steps[-1]}"
    try:
        path = chance.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
        with path.open("r+b") as file:
            place = chance.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
            os.fsync(file.fileno())
    except (OSError, IndexError):  # it was just deleted for a newer one
        return False
    return True


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what does not heed it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
