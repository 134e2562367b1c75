"""``sapo export`` hands on what it was given, says what it wrote, and rejects in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.export import Dtype
from cluster.cli.export import What as OfTheOption
from cluster.export.export import Exported, ExportJob
from cluster.export.model_card import CardExtras
from cluster.export.source import ExportSource, What
from cluster.export.weights import DTYPES
from cluster.storage.checkpoints import CheckpointManifest
from support.command_line import Sapo

MANIFEST = CheckpointManifest(format=2, version="0", step=3, total_steps=9, data="d", files={})


def test_options_reach_the_export(sapo: Sapo, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[ExportJob] = []

    def export(job: ExportJob) -> Exported:
        jobs.append(job)
        return Exported(ExportSource(job.what, Path("r/step-3"), MANIFEST, {}), 1234, ("a", "b"), "https://hub/me/m")

    monkeypatch.setattr("cluster.export.export.export", export)
    options = "--what average --dtype bfloat16 --max-shard-size 1GB --evaluation e.json --base-model o/b --license mit"
    said = sapo("export", "runs/r", "--to", "out", *options.split(), "--push-to-hub", "me/m", "--private")
    assert said.out == (
        "wrote average of r/step-3 to out: 1,234 bytes of weights\nfiles: a, b\nuploaded: https://hub/me/m\n"
    )
    extras = CardExtras("o/b", "mit", Path("e.json"))
    assert jobs == [ExportJob(Path("runs/r"), What.AVERAGE, Path("out"), "bfloat16", "1GB", "me/m", True, extras)]


def test_the_command_knows_every_model_and_dtype() -> None:
    assert [what.value for what in OfTheOption] == [what.value for what in What]
    assert [dtype.value for dtype in Dtype] == list(DTYPES)


def test_nothing_there_is_one_line(sapo: Sapo, tmp_path: Path) -> None:
    said = sapo("export", tmp_path / "gone", "--to", tmp_path / "out")
    assert said.rejection.startswith(f"{tmp_path / 'gone'}: no such folder; give a run")
