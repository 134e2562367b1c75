"""What chaos does to a run, and what its audit finds, on folders and processes that are small."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.chaos.audit import Traces, _differences, events, findings
from benchmarks.chaos.faults import ALL, Fault, _damage, _hit, runs, wait_until


def run_dir(folder: Path, steps: list[int], staleness: int = 0) -> Path:
    lines = [{"step": step, "staleness/max": staleness, "pairs/drawn": 8 * step, "time/step_s": 0.1} for step in steps]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_gaps_doubles_and_pairs_that_are_too_old_are_found(tmp_path):
    sound = findings(run_dir(tmp_path, [1, 2, 3]), 0, 3, 8, None)
    assert sound == ["no last checkpoint"]
    for steps in ([1, 3], [1, 2, 2, 3], [1, 2]):
        assert f"steps {steps}" in findings(run_dir(tmp_path, steps), 0, 3, 8, None)
    assert "staleness over 2" in findings(run_dir(tmp_path, [1, 2, 3], staleness=3), 2, 3, 8, None)


def test_a_run_that_differs_in_one_figure_is_not_the_undisturbed_one(tmp_path):
    peaceful, other = run_dir(tmp_path / "peaceful", [1, 2]), run_dir(tmp_path / "other", [1, 2])
    for folder in (peaceful, other):
        for half in ("policy", "ema"):
            (folder / "checkpoints" / "step-2" / half).mkdir(parents=True)
            (folder / "checkpoints" / "step-2" / half / "model.safetensors").write_bytes(b"weights")
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text().replace('"time/step_s": 0.1', '"x": 1'))
    (other / "checkpoints" / "step-2" / "ema" / "model.safetensors").write_bytes(b"wei9hts")
    found = _differences(other, peaceful, 2)
    assert found == [
        "metrics differ from the undisturbed run's, first at step 1: x",
        "ema differs from the undisturbed run's",
    ]
    assert _differences(peaceful, peaceful, 2) == []


def test_the_last_valid_checkpoint_is_never_damaged(tmp_path):
    first = tmp_path / "step-4"
    first.mkdir()
    (first / "run.json").write_bytes(b"{}")
    chance = random.Random(0)
    assert not _damage(tmp_path, chance)
    newest = tmp_path / "step-12"
    newest.mkdir()
    (newest / "run.json").write_bytes(b"{}")
    assert _damage(tmp_path, chance)
    assert (first / "run.json").read_bytes() == b"{}" != (newest / "run.json").read_bytes()


def test_processes_are_killed_stopped_and_seen_if_they_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.chaos.audit.SETTLE_S", 0.0)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    victim, traces = psutil.Process(process.pid), Traces()
    traces.look(victim)
    try:
        assert _hit("stop", victim, tmp_path, random.Random(0))
        assert wait_until(lambda: victim.status() == psutil.STATUS_STOPPED, victim, 10.0)
        assert [line for line in traces.left() if f"process {process.pid} " in line]
    finally:
        _hit("kill", victim, tmp_path, random.Random(0))
        process.wait()
    assert not runs(victim)
    assert traces.left() == []


def test_a_fault_that_ends_an_attempt_is_waited_for_until_it_is_noticed(tmp_path):
    ending = {str(fault) for fault in ALL if fault.ends_attempt}
    assert {"kill rank", "stop shard", "damage rank"} <= ending
    assert not Fault("kill", "actor").ends_attempt and not Fault("pause", "rank").ends_attempt
    assert events(tmp_path, "attempt failed") == 0
    (tmp_path / "events.jsonl").write_text('{"time": 1.0, "event": "attempt failed", "step": 4}\n')
    assert events(tmp_path, "attempt failed") == 1
