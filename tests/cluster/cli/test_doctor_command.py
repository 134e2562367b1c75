"""``sapo doctor`` lists findings with remedies; its status says whether runs would fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.doctor import machine, network
from support.command_line import Sapo


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_answers", lambda host, port: True)


def test_a_machine_on_which_the_tests_run_is_well(sapo: Sapo, run_file: Path) -> None:
    said = sapo("doctor", run_file)
    assert said.status == 0, said
    for subject in ("python", "GPUs", "compiler", "disk", "shared memory", "ray", "ports", "hub"):
        assert f"{subject}: " in said.out


def test_something_wrong_is_status_1_with_its_remedy(sapo: Sapo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    said = sapo("doctor")
    assert said.status == 1
    assert "install a C++ compiler" in said.out
    assert "1 wrong" in said.out


def test_a_config_that_can_not_be_read_is_one_line(sapo: Sapo, tmp_path: Path) -> None:
    assert "no such config file" in sapo("doctor", tmp_path / "gone.yaml").rejection
