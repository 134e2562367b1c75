"""One driver a run folder: a lock that the operating system takes back when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from contracts.errors import UserError


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run folder's lock. The file lies beside the folder, which --overwrite deletes, and stays there.

    Raises:
        UserError: another process holds it, or it can't be made.
    """
    path = run_dir.parent / f".{run_dir.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
        _sign(path)
    except Timeout as error:
        raise UserError(f"{run_dir}: in use by {_holder(path)}; wait for it, or give another name=") from error
    except OSError as error:
        raise UserError(f"output_dir {run_dir.parent}: {path} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _sign(path: Path) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    if job := os.environ.get("RAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"):
        holder["job"] = job
    path.write_text(json.dumps(holder), encoding="utf-8")


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        job = f" of job {holder['job']}" if "job" in holder else ""
        return f"process {holder['pid']}{job} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
