"""Starting Ray on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config.sections import ClusterConfig
from cluster.workers import ray_session
from contracts.errors import UserError
from support.paths import REPOSITORY


class Ray:
    """Fails to start so many times."""

    def __init__(self, failures: int) -> None:
        self._failures, self.started, self.cleaned = failures, 0, 0

    def init(self, **_: object) -> None:
        self.started += 1
        if self.started <= self._failures:
            raise Exception("The current node timed out during startup. The GCS may be overloaded.")

    def shutdown(self) -> None:
        self.cleaned += 1


@pytest.mark.parametrize("failures", [0, 1])
def test_a_ray_that_comes_up_at_the_second_try_serves(monkeypatch, tmp_path: Path, failures: int):
    fake = Ray(failures)
    monkeypatch.setattr(ray_session, "ray", fake)
    ray_session._start(ClusterConfig(), 2.0, str(tmp_path))
    assert (fake.started, fake.cleaned) == (failures + 1, failures)


def test_a_ray_that_does_not_come_up_is_told_in_one_line(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(ray_session, "ray", Ray(2))
    with pytest.raises(UserError, match="could not be started on this machine: The current node timed out"):
        ray_session._start(ClusterConfig(), 2.0, str(tmp_path))


DRIVER = """
import os, signal, sys, time
import psutil, ray
from cluster.config.sections import ClusterConfig
from cluster.workers.ray_session import ray_session
asked = []
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with ray_session(ClusterConfig(dashboard=False), 1):
    signal.signal(signal.SIGTERM, lambda signum, _: asked.append(signum))
    parts = psutil.Process().children(recursive=True)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(1)
    assert asked, "the driver is told"
    assert ray.get(ray.put("alive")) == "alive"
    lost = [part.name() for part in parts if not part.is_running() or part.status() == psutil.STATUS_ZOMBIE]
    print("lost", lost, len(parts) > 1)
_, alive = psutil.wait_procs(parts, timeout=60)
print("left", alive)
"""


@pytest.mark.slow
def test_a_signal_to_the_drivers_whole_group_reaches_no_part_of_its_ray() -> None:
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=REPOSITORY, capture_output=True, text=True, process_group=0, check=False
    )
    assert driver.stdout.splitlines() == ["lost [] True", "left []"], driver.stderr
