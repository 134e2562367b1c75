"""A checkpoint is whole or not there, and says which format it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.storage.checkpoints import CheckpointManifest, read_manifest, write_manifest, written_aside
from contracts.errors import UserError
from contracts.version import VERSION


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    write_manifest(tmp_path, step=3, rows=200)
    assert read_manifest(tmp_path) == CheckpointManifest(format=1, version=VERSION, step=3, rows=200)
    assert json.loads((tmp_path / "run.json").read_text())["version"] == VERSION


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # What versions without a format number wrote.
        ('{"step": 4, "rows": 200}', ": has no format number, so another version wrote it; "),
        ('{"format": 2, "version": "9", "step": 4, "rows": 200}', ": has format 2, so another version wrote it; "),
        ("[]", ": has no format number, "),
        ("", "/run.json: damaged: "),
        ('{"format": 1, "st', "/run.json: damaged: "),
        (b"\xff", "/run.json: damaged: "),
        ('{"format": 1, "version": "9", "step": 4}', "/run.json: damaged: rows: Field required"),
        ('{"format": 1, "version": "9", "step": "x", "rows": 1}', "/run.json: damaged: step: Input should be"),
    ],
)
def test_another_manifest_is_rejected_in_one_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}{words}")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: can't be read: No such file or directory"):
        read_manifest(tmp_path)


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "checkpoints" / "step-4"
    with pytest.raises(RuntimeError), written_aside(final) as aside:
        (aside / "half").touch()
        raise RuntimeError
    assert not final.exists()
    with written_aside(final) as aside:
        assert aside != final
        assert not list(aside.iterdir()), "what a dead run left is gone"
        (aside / "whole").touch()
        assert not final.exists()
    assert [p.name for p in final.iterdir()] == ["whole"]
    assert [p.name for p in final.parent.iterdir()] == ["step-4"]
