"""What killed drivers leave is gone at the next start; what running ones use is not."""

from __future__ import annotations

import signal
import subprocess
import sys
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
        assert sweep(tmp_path) == [used]
        assert mine.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sapo-not-a-session"]
