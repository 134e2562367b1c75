"""What can happen to a run, and to whom: processes by their titles, a checkpoint's bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

TITLES = {
    "rank": "ray::LearnerRank",
    "actor": "ray::GenerationActor",
    "coordinator": "ray::Coordinator",
    "shard": "ray::Shard",
    "mailbox": "ray::Control",
}
"""How Ray calls the processes of a run's parts."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to one part of a run."""

    kind: str
    """kill: SIGKILL; stop: SIGSTOP, and it never goes on; damage: a byte of the newest checkpoint, then a rank dies."""
    part: str

    def __str__(self) -> str:
        return f"{self.kind} {self.part}"


ALL = [
    *(Fault("kill", part) for part in TITLES),
    *(Fault("stop", part) for part in ("rank", "actor", "coordinator", "shard")),
    Fault("damage", "rank"),
]


def strike(fault: Fault, driver: psutil.Process, checkpoints: Path, chance: random.Random) -> bool:
    """Let it happen to the run of ``driver``; False: there was nobody to hit."""
    title = TITLES[fault.part]
    victims = [process for process in driver.children(recursive=True) if _title(process).startswith(title)]
    if not victims:
        return False
    victim = chance.choice(sorted(victims, key=lambda process: process.pid))
    if fault.kind == "damage" and not _damage(checkpoints, chance):
        return False
    try:
        victim.send_signal(signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def wait_until(condition: Callable[[], bool], driver: psutil.Process, timeout_s: float) -> bool:
    """Whether ``condition`` came true while the driver ran."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and _runs(driver):
        if condition():
            return True
        time.sleep(0.1)
    return False


def _damage(checkpoints: Path, chance: random.Random) -> bool:
    """Flip a bit of a file of the newest checkpoint."""
    whole = [path for path in checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    newest = max(whole, key=lambda path: int(path.name.removeprefix("step-")), default=None)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size) if newest else []
    if not files:
        return False
    path = chance.choice(files)
    try:
        with path.open("r+b") as file:
            place = chance.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
            os.fsync(file.fileno())
    except OSError:  # it was just replaced by a newer one
        return False
    return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
