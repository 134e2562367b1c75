"""Every path that is there becomes absolute, and nothing that a Ray job writes goes into the copy that Ray deletes."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.config.paths import checkout, resolved
from cluster.config.run_config import RunConfig
from contracts.errors import UserError


def config(**values: Any) -> RunConfig:
    return validate_config({"model": {"path": "models/m"}, "data": {"path": "data/d.jsonl"}} | values, "test")


def test_what_is_there_becomes_absolute_and_a_hub_name_stays(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.jsonl").touch()
    (tmp_path / "t.jinja").touch()
    given = config(data={"path": "data/d.jsonl", "chat_template": "t.jinja"}, model={"path": "m", "tokenizer": "o/t"})
    found = resolved(given, tmp_path, None)
    assert found.data.path == str(tmp_path / "data" / "d.jsonl")
    assert found.data.chat_template == str(tmp_path / "t.jinja")
    assert (found.model.path, found.model.tokenizer) == ("m", "o/t")
    assert found.output_dir == str(tmp_path / "runs")
    assert resolved(found, tmp_path / "elsewhere", None) == found


def test_the_home_folder_is_known_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    found = resolved(config(model={"path": "~/m"}, output_dir="~/runs"), Path("/"), None)
    assert (found.model.path, found.output_dir) == (str(tmp_path / "m"), str(tmp_path / "runs"))
    assert resolved(config(model={"path": "~no-such-user/m"}), Path("/"), None).model.path == "~no-such-user/m"


def test_a_job_writes_under_the_checkout_and_finds_what_was_uploaded(tmp_path: Path) -> None:
    copy, home = tmp_path / "working_dir_files" / "pkg", tmp_path / "home"
    (copy / "data").mkdir(parents=True)
    (copy / "data" / "d.jsonl").touch()
    (home / "models" / "m").mkdir(parents=True)
    found = resolved(config(output_dir="runs"), copy, home)
    assert found.output_dir == str(home / "runs")
    assert found.data.path == str(copy / "data" / "d.jsonl")
    assert found.model.path == str(home / "models" / "m")


def test_a_hub_name_stays_a_hub_name(tmp_path: Path) -> None:
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    assert resolved(config(output_dir="/abs"), copy, tmp_path).model.path == "models/m"
    assert resolved(config(output_dir="/abs"), copy, None).output_dir == "/abs"


def test_a_relative_output_without_a_checkout_is_rejected(tmp_path: Path) -> None:
    copy = tmp_path / "working_dir_files"
    copy.mkdir()
    with pytest.raises(UserError, match=r"output_dir runs: .*make it absolute"):
        resolved(config(output_dir="runs"), copy, None)


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
