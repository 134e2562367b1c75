"""``sapo actors`` needs a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command_line import Sapo


def test_actors_ask_for_a_cluster(sapo: Sapo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert sapo("actors", "1", "--run", "r").rejection.startswith("run r: no run folder runs/r here")
    assert sapo("actors", "-1", "--run", "r").rejection.startswith("run r: no run folder runs/r here")
    assert sapo("actors", "1", "--rum", "r").status == 2
