"""What killed drivers leave is gone at the next start; what running ones use is not."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from cluster.workers.leftovers import session_folder, sweep
from support.paths import REPOSITORY

DRIVER = """
import sys, time
from pathlib import Path
from cluster.workers.leftovers import session_folder
with session_folder(Path(sys.argv[1])) as folder:
    (folder / "session").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_killed_drivers_folder_goes_at_the_next_start_and_a_running_ones_stays(tmp_path: Path) -> None:
    (tmp_path / "sapo-not-a-session").mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    used = Path(driver.stdout.readline().strip())
    with session_folder(tmp_path) as mine:
        assert (used / "session").is_dir()
        assert sweep(tmp_path) == []
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert sweep(tmp_path) == [used.parent]
        assert mine.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sapo-not-a-session"]


def test_a_folder_that_was_made_again_after_its_drivers_end_goes_when_it_is_old(tmp_path: Path) -> None:
    with session_folder(tmp_path) as folder:
        session = folder.parent / "session"
    session.mkdir(parents=True)
    young = tmp_path / "sapo-12345678"
    young.mkdir()
    assert sweep(tmp_path) == []
    hour_ago = time.time() - 3600
    os.utime(session.parent, (hour_ago, hour_ago))
    assert sweep(tmp_path) == [session.parent]
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_what_is_made_again_while_the_next_driver_runs_goes_with_it(tmp_path: Path) -> None:
    killed = tmp_path / "sapo-12345678"
    killed.mkdir()
    (killed / "driver.lock").touch()
    with session_folder(tmp_path):
        assert not killed.exists()
        (killed / "ray" / "session_of_a_late_raylet").mkdir(parents=True)
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_may_enter_what_ray_opens_to_everybody(tmp_path: Path) -> None:
    with session_folder(tmp_path) as folder:
        folder.chmod(0o777)  # as Ray does
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert folder.parent.parent == tmp_path
