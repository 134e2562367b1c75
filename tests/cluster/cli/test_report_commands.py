"""``sapo report`` and ``sapo compare`` write pages; what is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.reports.page import html
from support.command_line import Sapo
from support.run_folders import make_run


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "plotly_script", lambda: "")


def test_a_report_lies_in_the_run_folder(sapo: Sapo, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    said = sapo("report", folder)
    assert said.out == f"wrote {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_comparison_lies_where_one_says(sapo: Sapo, tmp_path: Path) -> None:
    said = sapo("compare", make_run(tmp_path / "a"), make_run(tmp_path / "b"), "--out", tmp_path / "both.html")
    assert said.status == 0
    assert (tmp_path / "both.html").exists()


def test_no_run_and_no_place_to_write_are_one_line(sapo: Sapo, tmp_path: Path) -> None:
    assert "no such run folder" in sapo("report", tmp_path / "gone").rejection
    folder = make_run(tmp_path / "r")
    assert "--out" in sapo("report", folder, "--out", tmp_path / "gone" / "a.html").rejection
    assert "no such config file" in sapo("report", folder, "--recipe", tmp_path / "gone.yaml").rejection
