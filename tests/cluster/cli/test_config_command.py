"""``sapo config`` prints what a run would use, and explains every field."""

from __future__ import annotations

from pathlib import Path

from cluster.cli.config import fields
from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from support.command_line import Sapo


def test_config_prints_what_a_run_would_use_as_yaml_that_reads_back(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    said = sapo("config", run_file, "learner.steps=5")
    (tmp_path / "again.yaml").write_text(said.out)
    assert said.status == 0
    assert load_config(tmp_path / "again.yaml") == load_config(run_file, ["learner.steps=5"])


def test_config_rejects_what_is_not_there(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    for key, words in (
        ("model.path", "no such folder"),
        ("model.tokenizer", "no such folder"),
        ("data.path", "no such file or folder"),
        ("data.held_out", "no such file or folder"),
        ("data.chat_template", "no such file"),
    ):
        said = sapo("config", run_file, f"{key}={none}")
        assert said.rejection == f"{key} {none}: {words}"
        assert str(none) in said.out, "it is printed all the same"
    assert sapo("config", run_file, "data.path=null", f"data.sources=[{{path: {none}}}]").rejection == (
        f"data.sources.0.path {none}: no such file or folder"
    )
    assert "nothing can be written in /proc" in sapo("config", run_file, "output_dir=/proc/x").rejection
    assert sapo("config", run_file, "model.path=owner/name", "data.path=owner/rows").status == 0
    assert not (tmp_path / "runs").exists()


def test_every_field_is_explained_with_its_default(sapo: Sapo) -> None:
    explained = {name: (default, meaning) for name, default, meaning in fields(RunConfig)}
    assert explained["model.path"][0] == "required"
    assert explained["ema.decay"][0] == "0.5"
    assert explained["generation.segment_length"][0] == "256"
    assert explained["model.lora.rank"][0] == "16"
    assert all(meaning for _, meaning in explained.values())
    assert not {name for name in explained if name.rpartition(".")[0] in explained}, "a section is listed as a field"
    assert "weights.max_staleness" in sapo("config", "--explain").out
