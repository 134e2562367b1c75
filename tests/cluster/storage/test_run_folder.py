"""The run folder: one run a folder, whole checkpoints, lines that a resumed run can append to."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from cluster.storage.checkpoints import write_manifest
from cluster.storage.run_folder import FoundCheckpoint, RunFolder, as_yaml
from cluster.storage.run_lock import holder_of, run_lock
from contracts.errors import UserError


def config(output_dir: Path, **changes: object) -> RunConfig:
    values = {"name": "r", "output_dir": str(output_dir), "model": {"path": "m"}, "data": {"path": "d"}}
    return RunConfig.model_validate(values | changes)


def prepared(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    folder.prepare()
    return folder


def rejection(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        prepared(config, resume=resume, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    changes = {"generation": {"segment_length": None}, "learner": {"steps": 7}, "optimizer": {"betas": [0.8, 0.9]}}
    original = config(tmp_path, **changes)
    (tmp_path / "c.yaml").write_text(as_yaml(original))
    assert load_config(tmp_path / "c.yaml") == original


def test_a_new_run_keeps_its_config_beside_its_metrics(tmp_path: Path) -> None:
    made = prepared(config(tmp_path))
    assert made.path == tmp_path / "r"
    assert load_config(made.path / "config.yaml") == config(tmp_path)


def test_a_run_that_has_metrics_is_replaced_only_by_overwrite(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    folder.checkpoint(3).mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    said = rejection(config(tmp_path))
    assert said == f"{tmp_path / 'r'}: holds a run already; give another name=, or --resume, or --overwrite"
    assert folder.newest_checkpoint() == folder.checkpoint(3)
    prepared(config(tmp_path), overwrite=True)
    assert not (folder.path / "metrics.jsonl").exists()
    assert folder.newest_checkpoint() is None


def test_a_resumed_run_keeps_what_is_there(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    folder.checkpoint(3).mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    prepared(config(tmp_path), resume=True)
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def checkpoints(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        folder.checkpoint(step).mkdir()
        (folder.checkpoint(step) / "state").write_text(f"of step {step}")
        write_manifest(folder.checkpoint(step), step, data="d", total_steps=20)


def test_an_older_checkpoint_serves_where_newer_ones_are_damaged(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    assert folder.newest_valid_checkpoint() == FoundCheckpoint()
    checkpoints(folder, 4, 8, 12)
    (folder.checkpoint(12) / "run.json").unlink()
    (folder.checkpoint(8) / "state").write_text("of step 7")
    found = folder.newest_valid_checkpoint()
    assert (found.folder, found.step) == (folder.checkpoint(4), 4)
    assert [damage.partition(": ")[0] for damage in found.damaged] == [
        str(folder.checkpoint(12) / "run.json"),
        str(folder.checkpoint(8) / "state"),
    ]
    folder.set_aside_after(4)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-12.damaged", "step-4", "step-8.damaged"]


def test_a_run_without_any_valid_checkpoint_says_what_is_wrong_with_the_newest(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    checkpoints(folder, 4, 8)
    for step in (4, 8):
        (folder.checkpoint(step) / "state").unlink()
    with pytest.raises(UserError, match=r"step-8/state: can't be read.*; step-8 can't be used, step-4 neither;"):
        folder.newest_valid_checkpoint()


def test_a_checkpoint_under_another_step_s_number_is_passed_over(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    checkpoints(folder, 4, 8)
    folder.checkpoint(5000).symlink_to(folder.checkpoint(8))
    found = folder.newest_valid_checkpoint()
    assert found.folder == folder.checkpoint(8)
    assert found.damaged == (f"{folder.checkpoint(5000)}: damaged: it holds the checkpoint of step 8",)


def test_a_second_start_is_told_that_the_run_is_going_on(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    checkpoints(folder, 4)
    with run_lock(folder.path):
        with pytest.raises(UserError, match=f"r: in use by process {os.getpid()} on .*; wait for it, or give another"):
            RunFolder(config(tmp_path), resume=False, overwrite=False)
        assert holder_of(folder.path), "what the lock says is still there"
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder(config(tmp_path), resume=False, overwrite=False)


def test_a_run_that_may_goes_on_by_itself_and_overwrite_still_replaces_it(tmp_path: Path) -> None:
    again = config(tmp_path, recovery={"auto_resume": True})
    assert not RunFolder(again, resume=False, overwrite=False).resumed
    prepared(config(tmp_path)).checkpoint(3).mkdir()
    assert RunFolder(again, resume=False, overwrite=False).resumed
    assert not RunFolder(again, resume=False, overwrite=True).resumed


def test_resume_without_a_whole_checkpoint_is_rejected_and_makes_no_folder(tmp_path: Path) -> None:
    assert rejection(config(tmp_path), resume=True).endswith(
        "--resume, but it holds no whole checkpoint; start without --resume"
    )
    assert not (tmp_path / "r").exists()
    (tmp_path / "r" / "checkpoints" / "step-4.tmp").mkdir(parents=True)
    assert "no whole checkpoint" in rejection(config(tmp_path), resume=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "r" / "checkpoints" / "step-4").mkdir(parents=True)
    assert "exclude each other" in rejection(config(tmp_path), resume=True, overwrite=True)
    assert (tmp_path / "r" / "checkpoints" / "step-4").exists()


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "runs"
    assert rejection(config(output)).startswith(f"output_dir {output}: ")
    assert "can't be written: Not a directory" in rejection(config(output))


def test_only_whole_checkpoints_count_and_the_oldest_go(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    for name in ("step-9", "step-10", "step-2", "step-11.tmp", "notes"):
        (folder.checkpoints / name).mkdir()
    assert folder.newest_checkpoint() == folder.checkpoint(10)
    folder.prune(keep=2)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["notes", "step-10", "step-9"]


def test_a_resumed_run_rewrites_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    lines = folder.open_lines("metrics.jsonl")
    for step in (1, 2, 3):
        lines.write({"step": step, "loss": float(np.float32(0.5)), "text": "é\u2028"})
    lines.close()
    folder.keep_lines_below("metrics.jsonl", 2)
    kept = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["step"] for line in kept] == [1, 2]
    again = folder.open_lines("metrics.jsonl")
    again.write({"step": 3})
    again.close()
    assert (folder.path / "metrics.jsonl").read_text(encoding="utf-8").endswith('{"step": 3}\n')


@pytest.mark.parametrize(("resume", "overwrite"), [(True, False), (False, True)])
def test_a_folder_that_is_only_looked_at_is_left_as_it_was(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    folder = prepared(config(tmp_path))
    folder.checkpoint(3).mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 9}\n')
    (folder.path / "config.yaml").write_text("as it was")
    RunFolder(config(tmp_path, seed=7), resume=resume, overwrite=overwrite)
    assert (folder.path / "config.yaml").read_text() == "as it was"
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 9}\n'
    assert folder.checkpoint(3).exists()


def test_a_checkpoint_without_metrics_is_a_run_too(tmp_path: Path) -> None:
    prepared(config(tmp_path)).checkpoint(3).mkdir()
    with pytest.raises(UserError, match="holds a run already"):
        prepared(config(tmp_path))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = prepared(config(tmp_path))
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: damaged"):
        folder.logged_steps("metrics.jsonl")


def test_a_resume_on_a_full_disk_leaves_the_config_as_it_was(tmp_path: Path, monkeypatch) -> None:
    folder = prepared(config(tmp_path))
    folder.checkpoint(3).mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 3}\n')
    write_manifest(folder.checkpoint(3), 3, data="d", total_steps=20)
    before = (folder.path / "config.yaml").read_text()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "config.yaml")

    monkeypatch.setattr(os, "fsync", full)
    assert "can't be written: No space left" in rejection(config(tmp_path, seed=7), resume=True)
    assert (folder.path / "config.yaml").read_text() == before
