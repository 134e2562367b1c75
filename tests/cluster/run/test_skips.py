"""A step that was skipped is kept for reading; too many in a row end the attempt."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cluster.run.callbacks import StepResult
from cluster.run.skips import SkippedBatches, Skips
from cluster.sources.base import Batch
from cluster.storage.json_lines import JsonLines
from cluster.workers.ray_calls import WorkerFailure
from learner.messages import SKIPPED
from support.pairs import generated


def test_only_too_many_in_a_row_end_the_attempt():
    skips = Skips(most=2)
    for step, skipped in enumerate([1, 1, 0, 1, 1, 0], 1):
        skips.count(step, {SKIPPED: skipped})
    skips.count(7, {SKIPPED: 1})
    skips.count(8, {SKIPPED: 1})
    with pytest.raises(WorkerFailure, match="gradient of 3 steps in a row, the last 9, is not finite") as failed:
        skips.count(9, {SKIPPED: 1})
    assert not failed.value.died


def test_the_batch_of_a_skipped_step_is_kept_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    lines = JsonLines(tmp_path / "skipped.jsonl")
    report = SkippedBatches(lines, lambda ids: " ".join(map(str, ids)), logging.getLogger("test"))
    for step, skipped in enumerate([0, 1, 0], 1):
        report.on_step(StepResult(step, Batch([generated(2 * step), generated(2 * step + 1)]), {SKIPPED: skipped}))
    lines.close()
    kept = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["index"]) for line in kept] == [(2, 4), (2, 5)]
    assert "step 2 was skipped" in caplog.text


def test_a_run_without_a_skipped_step_leaves_no_file(tmp_path: Path):
    JsonLines(tmp_path / "skipped.jsonl").close()
    assert not list(tmp_path.iterdir())
