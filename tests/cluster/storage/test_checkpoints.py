"""A checkpoint is whole or not there, says which format it has, and proves that it is what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.checkpoints import deleted_on_error, open_aside, publish, read_manifest, verify, write_manifest
from contracts.errors import UserError
from contracts.version import VERSION

PLAIN = '"format": 2, "version": "9", "step": 4, "total_steps": 9, "data": "d"'


def written(folder: Path) -> Path:
    (folder / "learner").mkdir(parents=True)
    (folder / "learner" / "rank-0.safetensors").write_bytes(bytes(range(256)) * 50)
    (folder / "config.yaml").write_text("name: r")
    write_manifest(folder, step=3, data="abc", total_steps=9)
    return folder


def test_a_manifest_names_step_data_and_every_file(tmp_path: Path) -> None:
    manifest = verify(written(tmp_path))
    assert (manifest.step, manifest.data, manifest.version) == (3, "abc", VERSION)
    assert {name: file.bytes for name, file in manifest.files.items()} == {
        "config.yaml": 7,
        "learner/rank-0.safetensors": 12800,
    }
    assert json.loads((tmp_path / "run.json").read_text())["version"] == VERSION


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip_a_bit, "damaged: its checksum is not that of what was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged: 12799 bytes, 12800 were written"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "damaged: 12801 bytes, 12800 were written"),
        (lambda path: path.unlink(), "can't be read: No such file or directory"),
        (lambda path: shutil.rmtree(path.parent), "can't be read: No such file or directory"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    path = written(tmp_path) / "learner" / "rank-0.safetensors"
    harm(path)
    with pytest.raises(UserError) as caught:
        verify(tmp_path)
    assert str(caught.value) == f"{path}: {words}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # What versions without a format number wrote, and those without checksums.
        ('{"step": 4, "rows": 200}', ": has no format number, so another version wrote it; "),
        ('{"format": 1, "version": "9", "step": 4, "rows": 200}', ": has format 1, so another version wrote it; "),
        ("[]", ": has no format number, "),
        ("", "/run.json: damaged: "),
        ('{"format": 2, "st', "/run.json: damaged: "),
        (b"\xff", "/run.json: damaged: "),
        (f"{{{PLAIN}}}", "/run.json: damaged: files: Field required"),
        (f'{{{PLAIN}, "files": {{"a": 1}}}}', "/run.json: damaged: files: Input should be"),
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
    aside = open_aside(final)
    with pytest.raises(RuntimeError), deleted_on_error(aside):
        (aside / "half").touch()
        raise RuntimeError
    assert not list(final.parent.iterdir()), "a full disk gets its room back"
    final.with_name("step-4.tmp").mkdir()
    (final.with_name("step-4.tmp") / "left").touch()
    aside = open_aside(final)
    assert aside != final
    assert not list(aside.iterdir()), "what a dead run left is gone"
    (aside / "whole").touch()
    publish(aside, final)
    assert [p.name for p in final.iterdir()] == ["whole"]
    assert [p.name for p in final.parent.iterdir()] == ["step-4"]
    with pytest.raises(FileExistsError, match="is there already"):
        open_aside(final)
    assert [p.name for p in final.iterdir()] == ["whole"]
