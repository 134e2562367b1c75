"""A run is found by name, by folder, or because it is the only one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage.run_lock import Holder, holder_of, run_lock, say_where
from cluster.workers.find_run import Found, find_run
from contracts.errors import UserError


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_run_of_this_machine_is_found_by_what_its_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    with run_lock(folder):
        assert find_run("mine", None) == Found("mine", None, folder)  # it has not reached Ray yet
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        say_where(folder, "127.0.0.1:6379")
        expected = Found("mine", "127.0.0.1:6379", folder, "token")
        assert find_run("mine", None) == find_run("runs/mine", None) == find_run(None, None) == expected
        assert find_run(str(tmp_path / "runs" / "mine"), None).address == "127.0.0.1:6379"


def test_a_run_whose_process_has_ended_has_a_folder_and_no_address():
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    code = "from pathlib import Path; from cluster.storage.run_lock import *; say_where(Path('runs/mine'), 'a:1')"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    holder = holder_of(folder)
    assert holder is not None and holder.ray == "a:1" and not holder.runs_here
    assert find_run("mine", None) == Found("mine", None, folder)


def test_another_machines_process_is_not_taken_for_one_of_this(monkeypatch: pytest.MonkeyPatch):
    assert not Holder("elsewhere", os.getpid(), "now").runs_here


def test_an_address_needs_no_folder(monkeypatch: pytest.MonkeyPatch):
    assert find_run("mine", "a:1") == Found("mine", "a:1", None)
    assert find_run(None, "a:1") == Found(None, "a:1", None)
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert find_run("mine", None) == Found("mine", "b:2", None)


def test_what_is_not_clear_is_one_line():
    with pytest.raises(UserError, match=r"no run is going on in .*runs; --run NAME or FOLDER"):
        find_run(None, None)
    with pytest.raises(UserError, match="run mine: no run folder runs/mine here"):
        find_run("mine", None)
    for name in ("a", "b"):
        Path("runs", name).mkdir(parents=True)
        say_where(Path("runs", name), "a:1")
    with pytest.raises(UserError, match="several are going on: a, b"):
        find_run(None, None)
