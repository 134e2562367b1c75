"""``sapo recipes`` lists, copies, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command_line import Sapo


def test_recipes_are_listed_and_copied(sapo: Sapo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = sapo("recipes")
    assert said.status == 0
    assert "mistral-7b-dpo-1-gpu" in said.out
    assert sapo("recipes", "demo", "spin").out == "wrote configs/demo.yaml\nwrote configs/spin.yaml\n"
    (tmp_path / "configs" / "demo.yaml").write_text("changed")
    assert sapo("recipes", "demo").rejection.startswith("configs/demo.yaml: is there already")
    assert sapo("recipes", "demon").rejection.startswith("recipe demon: there is none of that name")
