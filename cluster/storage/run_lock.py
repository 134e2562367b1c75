"""One driver a run folder: a lock that the operating system takes back when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
    path = _path(run_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
        _sign(path)
    except Timeout as error:
        raise _in_use(run_dir) from error
    except OSError as error:
        raise UserError(f"output_dir {run_dir.parent}: {path} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def validate_unused(run_dir: Path) -> None:
    """Raises:
    UserError: a process holds the run folder's lock.
    """
    if not _path(run_dir).exists():
        return
    lock = FileLock(_path(run_dir))
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout as error:
        raise _in_use(run_dir) from error
    except OSError:
        return  # a disk that can't be written: who wants to write finds out


def _in_use(run_dir: Path) -> UserError:
    holder = holder_of(run_dir) or "another process"
    return UserError(f"{run_dir}: in use by {holder}; wait for it, or give another name=")


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a run folder."""

    host: str
    pid: int
    since: str
    job: str = ""
    ray: str = ""
    """Address of its Ray cluster; empty until it is connected."""
    ray_auth: str = ""
    """RAY_AUTH_MODE there: a Ray that a run starts for itself asks for a token, which lies in the home folder."""

    def __str__(self) -> str:
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.pid}{job} on {self.host} since {self.since}"

    @property
    def runs_here(self) -> bool:
        """Whether it is a process of this machine that has not ended."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            return True
        return True


def holder_of(run_dir: Path) -> Holder | None:
    """Who has last used a run folder; None where nobody has, or it does not say. Takes no lock."""
    try:
        return Holder(**json.loads(_path(run_dir).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def say_where(run_dir: Path, address: str) -> None:
    """Add the Ray cluster to what the holder of the lock, this process, has said of itself."""
    _sign(_path(run_dir), address)


def _path(run_dir: Path) -> Path:
    return run_dir.parent / f".{run_dir.name}.lock"


def _sign(path: Path, address: str = "") -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    job = os.environ.get("RAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or ""
    holder = Holder(socket.gethostname(), os.getpid(), since, job, address, os.environ.get("RAY_AUTH_MODE", ""))
    path.write_text(json.dumps(asdict(holder)), encoding="utf-8")
