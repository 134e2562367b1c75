"""What a run ran with is in its folder."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.storage.environment import installed, write_environment
from contracts.errors import UserError


def test_versions_machine_and_command_are_written(tmp_path: Path) -> None:
    write_environment(tmp_path, "local Ray: 1 node(s)")
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written["packages"]["ray"] == version("ray")
    assert written["cluster"] == "local Ray: 1 node(s)"
    assert written["memory_bytes"] > 1 << 30
    assert written["command"]


def test_what_is_not_installed_is_left_out() -> None:
    assert installed(("numpy", "no-such-package")) == {"numpy": version("numpy")}


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"environment\.json: can't be written"):
        write_environment(tmp_path / "gone", "")
