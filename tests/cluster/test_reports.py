"""What a run tells its user: pair quality, hints, verdict, folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from buffer.errors import UserError
from buffer.record import PreferencePair, as_token_ids
from cluster.config import load_config, validate_config
from cluster.folder import RunFolder, as_yaml
from cluster.hints import Hints
from cluster.quality import pair_quality, readable
from cluster.verdict import Shares, verdict


def config(tmp_path: Path, **changes: object):
    values = {
        "name": "r",
        "output_dir": str(tmp_path),
        "model": {"path": "m"},
        "data": {"path": "d"},
    } | changes
    return validate_config(values, "test")


def pair(segment: list[int], replacement: list[int], **changes: object) -> PreferencePair:
    chosen = as_token_ids([5, *segment, 6, 7])
    fields = dict(
        prompt=as_token_ids([1]), chosen=chosen, start=1, end=1 + len(segment),
        replacement=as_token_ids(replacement), suffix_kept=True, mean_logprob=-1.0,
    )  # fmt: skip
    return PreferencePair(**(fields | changes))


def test_pair_quality_reports_edit_distance_length_and_ends() -> None:
    pairs = [pair([10, 11, 12], [10, 12]), pair([10, 11], [20, 21, 22, 23], ended=True, mean_logprob=-3.0)]
    quality = pair_quality(pairs)
    assert quality["pairs/edit_distance"] == (1 + 4) / 2
    assert quality["pairs/edit_fraction"] == pytest.approx((1 / 3 + 4 / 4) / 2)
    assert quality["pairs/length_difference"] == (-1 + 2) / 2
    assert quality["pairs/eos_fraction"] == 0.5
    assert quality["pairs/replacement_logprob"] == -2.0


def test_a_sample_marks_the_segment_and_drops_a_dropped_suffix() -> None:
    shown = readable(pair([10], [11], suffix_kept=False), lambda ids: " ".join(map(str, ids.tolist())), step=3)
    assert shown["chosen"] == "5⟦10⟧6 7"
    assert shown["rejected"] == "5⟦11⟧"
    json.dumps(shown)


def hints_of(history: list[dict[str, float]], window: int = 10) -> list[str]:
    said: list[str] = []
    hints = Hints(said.append, window)
    for metrics in history:
        hints.see(metrics)
    return said


def falling(step: int) -> dict[str, float]:
    return {
        "rewards/chosen": -0.1 * step,
        "rewards/rejected": -0.3 * step,
        "rewards/margins": 0.2 * step,
        "rewards/accuracies": 0.7,
    }


def test_falling_rewards_with_a_growing_margin_are_named_once() -> None:
    said = hints_of([falling(step) for step in range(40)])
    assert len(said) == 1
    assert "both fall" in said[0]


def test_rewards_that_rise_give_no_hint() -> None:
    history = [{name: abs(value) for name, value in falling(step).items()} for step in range(40)]
    assert hints_of(history) == []


def test_identical_pairs_and_saturation_are_named() -> None:
    said = hints_of([{"pairs/identical_fraction": 0.8, "rewards/margins": 9.0, "rewards/accuracies": 1.0}] * 12)
    assert len(said) == 2
    assert "80%" in said[0]
    assert "saturated" in said[1]


def shares(**changes: float) -> Shares:
    fields = dict(
        wall_s=100.0, learner_busy_s=90.0, draw_wait_s=0.0, weights_wait_s=0.0, publish_s=0.0, actor_wait_s=0.0,
        actors=2,
    )  # fmt: skip
    return Shares(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draw_wait_s": 50.0}, "generation-bound; 2 more actor(s)"),
        ({"actor_wait_s": 30.0}, "training-bound"),
        ({"weights_wait_s": 20.0}, "raise weights.max_staleness"),
        ({"publish_s": 20.0}, "raise weights.publish_every"),
        ({}, "balanced"),
    ],
)
def test_verdict_names_who_waits(changes: dict[str, float], words: str) -> None:
    assert words in verdict(shares(**changes), lockstep=False)


def test_verdict_of_lockstep_points_to_overlap() -> None:
    assert "max_staleness" in verdict(shares(draw_wait_s=50.0), lockstep=True)


def test_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    original = config(tmp_path, generation={"segment_length": None}, learner={"steps": 7})
    (tmp_path / "c.yaml").write_text(as_yaml(original))
    assert load_config(tmp_path / "c.yaml") == original


def test_a_finished_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path), resume=False, overwrite=False)
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="--overwrite"):
        RunFolder(config(tmp_path), resume=False, overwrite=False)
    RunFolder(config(tmp_path), resume=False, overwrite=True)
    assert not (folder.path / "metrics.jsonl").exists()


def test_only_whole_checkpoints_count_and_the_oldest_go(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path), resume=False, overwrite=False)
    for name in ("step-9", "step-10", "step-2", "step-11.tmp"):
        (folder.checkpoints / name).mkdir()
    assert folder.newest_checkpoint() == folder.checkpoint(10)
    folder.prune(keep=2)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-10", "step-9"]


def test_a_resumed_run_rewrites_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path), resume=False, overwrite=False)
    lines = folder.open_lines("metrics.jsonl")
    for step in (1, 2, 3):
        lines.write({"step": step, "loss": float(np.float32(0.5))})
    lines.close()
    folder.keep_lines_below("metrics.jsonl", 2)
    assert [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
