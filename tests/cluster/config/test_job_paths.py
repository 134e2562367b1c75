"""Nothing that a Ray job writes goes into the copy of the working directory that Ray deletes."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.job_paths import anchored, checkout
from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from contracts.errors import UserError


def config(**values: Any) -> RunConfig:
    return validate_config({"model": {"path": "models/m"}, "data": {"path": "data/d.jsonl"}} | values, "test")


def test_outside_of_a_job_nothing_changes(tmp_path: Path) -> None:
    assert anchored(config(), tmp_path, tmp_path) == config()


def test_a_job_writes_under_the_checkout_and_finds_what_was_uploaded(tmp_path: Path) -> None:
    copy, home = tmp_path / "working_dir_files" / "pkg", tmp_path / "home"
    (copy / "data").mkdir(parents=True)
    (copy / "data" / "d.jsonl").touch()
    (home / "models" / "m").mkdir(parents=True)
    found = anchored(config(output_dir="runs"), copy, home)
    assert found.output_dir == str(home / "runs")
    assert found.data.path == str(copy / "data" / "d.jsonl")
    assert found.model.path == str(home / "models" / "m")


def test_a_hub_name_stays_a_hub_name(tmp_path: Path) -> None:
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    assert anchored(config(output_dir="/abs"), copy, tmp_path).model.path == "models/m"
    assert anchored(config(output_dir="/abs"), copy, None).output_dir == "/abs"


def test_a_relative_output_without_a_checkout_is_rejected(tmp_path: Path) -> None:
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    with pytest.raises(UserError, match=r"output_dir runs: .*make it absolute"):
        anchored(config(output_dir="runs"), copy, None)


def installed(monkeypatch: pytest.MonkeyPatch, direct_url: dict[str, Any] | None) -> None:
    """Let the program be installed from there; None: from a wheel of an index."""
    text = json.dumps(direct_url) if direct_url else None
    distribution = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr(Distribution, "from_name", lambda name: distribution)


def test_the_checkout_is_the_folder_of_an_editable_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": "file:///home/me/my%20sapo", "dir_info": {"editable": True}})
    assert checkout() == Path("/home/me/my sapo")


def test_without_an_editable_installation_there_is_no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for direct_url in (None, {"url": "file:///home/me/sapo", "dir_info": {}}, {"url": "https://host/sapo.whl"}):
        installed(monkeypatch, direct_url)
        assert checkout() is None

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(Distribution, "from_name", absent)
    assert checkout() is None
