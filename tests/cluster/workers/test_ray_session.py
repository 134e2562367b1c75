"""Starting Ray on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.sections import ClusterConfig
from cluster.workers import ray_session
from contracts.errors import UserError


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
