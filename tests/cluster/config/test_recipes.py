"""The recipes that come with the program can be listed and copied, and copies work where they are put."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.loading import load_config
from cluster.config.recipes import copy_recipes, recipe, recipes
from contracts.errors import UserError
from support.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def test_every_config_of_the_repository_is_a_recipe_with_a_purpose_and_its_gpus():
    found = {recipe.name: recipe for recipe in recipes()}
    assert set(found) == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert found["demo"].gpus == "0"
    assert found["mistral-7b-dpo"].gpus == "8 (4 learner ranks + 4 actors x 1)"
    assert found["mistral-7b-dpo"].purpose == "SAPO-DPO with the settings released for Mistral-7B (arXiv 2405.20830)"
    assert all(len(recipe.purpose) < 140 for recipe in found.values())


def test_a_copy_to_configs_is_the_file_itself_with_its_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    written = copy_recipes(["llama-3-8b-sft", "demo"], Path("configs"))
    assert {str(path) for path in written} == {
        "configs/llama-3-8b-sft.yaml",
        "configs/demo.yaml",
        "configs/templates/chatml.jinja",
    }
    for path in written:
        assert path.read_bytes() == (REPOSITORY / path).read_bytes()


def test_paths_in_a_copy_lead_to_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    copy_recipes(["offline-orpo"], Path("mine/recipes"))
    template = load_config("mine/recipes/offline-orpo.yaml").data.chat_template
    assert template == "mine/recipes/templates/zephyr.jinja"
    assert Path(template).read_bytes() == (CONFIGS / "templates" / "zephyr.jinja").read_bytes()


def test_nothing_is_overwritten_and_nothing_written_by_half(tmp_path: Path):
    (tmp_path / "demo.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"demo\.yaml: is there already"):
        copy_recipes(["offline-orpo", "demo"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]
    copy_recipes(["offline-orpo"], tmp_path)
    copy_recipes(["mistral-7b-orpo"], tmp_path)  # the template that both use is there
    copy_recipes(["mistral-7b-orpo"], tmp_path)  # the same again changes nothing


def test_an_unknown_recipe_is_named_with_those_that_there_are():
    with pytest.raises(UserError, match=r"recipe demon: .*demo, demo-real, "):
        recipe("demon")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--to .*file.*: "):
        copy_recipes(["demo"], tmp_path / "file" / "below")
