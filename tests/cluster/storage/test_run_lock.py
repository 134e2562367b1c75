"""Two drivers never share a run folder, and a dead one leaves it free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage.run_lock import run_lock
from contracts.errors import UserError
from support.paths import REPOSITORY

HOLDER = """
import sys, time
from pathlib import Path
from cluster.storage.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_driver_is_told_who_has_the_folder_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError) as rejected, run_lock(run):
        pass
    assert str(rejected.value).startswith(f"{run}: in use by process {holder.pid} on ")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(run):
        pass


def test_one_process_holds_a_folder_once(tmp_path: Path) -> None:
    with run_lock(tmp_path / "r"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), run_lock(tmp_path / "r"):
            pass
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path / "r"):
        pass


def test_an_error_of_the_run_itself_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), run_lock(tmp_path / "r"):
        raise OSError("disk full")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir .*/file: .*can't be written"), run_lock(tmp_path / "file" / "r"):
        pass
