"""``sapo actors`` needs a cluster."""

from __future__ import annotations

import pytest

from support.command_line import Sapo


def test_actors_ask_for_a_cluster(sapo: Sapo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert sapo("actors", "1", "--run", "r").rejection.startswith("cluster.address: say which cluster")
    assert sapo("actors", "-1", "--run", "r").rejection.startswith("cluster.address: say which cluster")
    assert sapo("actors", "1", "--rum", "r").status == 2
