"""What a run tells its user: pair quality, hints, verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.reports.bottleneck import Shares, verdict
from cluster.reports.hints import Hints
from cluster.reports.pair_quality import pair_quality, readable
from cluster.reports.trackers import MetricsWriter
from contracts.pair import PreferencePair, as_token_ids


def pair(segment: list[int], replacement: list[int], **changes: Any) -> PreferencePair:
    chosen = as_token_ids([5, *segment, 6, 7])
    written = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=chosen,
        start=1,
        end=1 + len(segment),
        replacement=as_token_ids(replacement),
        suffix_kept=True,
        mean_logprob=-1.0,
    )
    return replace(written, **changes)


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


NOISE = np.random.default_rng(0).normal(size=(200, 2))
WITH_REFERENCE = {"logratios/segment_margin": 0.1}
ORPO = {"nll_loss": 1.0, "log_odds_ratio": -0.4}


def history(
    of: str, chosen: float, rejected: float, noise: float = 0.1, steps: int = 40, **more: float
) -> list[dict[str, float]]:
    """Steps in which ``of``/chosen and ``of``/rejected change by so much a step, with noise on each."""
    found = []
    for step in range(steps):
        values = {
            "chosen": chosen * step + noise * NOISE[step, 0],
            "rejected": rejected * step + noise * NOISE[step, 1],
        }
        margin = values["chosen"] - values["rejected"]
        found.append({f"{of}/{side}": value for side, value in values.items()} | {"rewards/margins": margin} | more)
    return found


def test_falling_rewards_with_a_growing_margin_are_named_once() -> None:
    said = hints_of(history("rewards", -0.1, -0.3, **WITH_REFERENCE))
    assert len(said) == 1
    assert "rewards/chosen and rewards/rejected both fall" in said[0]
    assert "objective.beta" in said[0]


@pytest.mark.parametrize(
    "steps",
    [
        history("rewards", 0.1, -0.3, **WITH_REFERENCE),  # the chosen response becomes more likely
        history("rewards", -0.3, -0.1, **WITH_REFERENCE),  # the margin shrinks
        history("rewards", 0.0, 0.0, noise=1.0, steps=200, **WITH_REFERENCE),  # nothing but noise
        history("rewards", -0.001, -0.002, noise=1.0, steps=60, **WITH_REFERENCE),  # noise hides it
        history("rewards", -0.1, -0.3),  # rewards without a reference are log-probabilities of changing batches
    ],
)
def test_other_trends_of_the_rewards_give_no_hint(steps: list[dict[str, float]]) -> None:
    assert hints_of(steps) == []


def test_a_reward_above_zero_is_not_called_falling() -> None:
    steps = [
        s | {"rewards/chosen": s["rewards/chosen"] + 100} for s in history("rewards", -0.1, -0.3, **WITH_REFERENCE)
    ]
    assert hints_of(steps) == []


@pytest.mark.parametrize(
    ("metrics", "remedy", "other"),
    [
        (ORPO, "objective.orpo_lambda", "beta"),
        ({"nll_loss": 1.0}, "objective.cpo_alpha", "orpo_lambda"),
        ({}, "objective.sft_weight > 0", "cpo_alpha"),
    ],
)
def test_without_a_reference_log_probabilities_are_watched(metrics: dict[str, float], remedy: str, other: str) -> None:
    said = hints_of(history("logps", -0.1, -0.3, **metrics))
    assert len(said) == 1
    assert "logps/chosen and logps/rejected both fall" in said[0]
    assert remedy in said[0]
    assert other not in said[0]
    assert hints_of(history("logps", 0.1, -0.3, **metrics)) == []
    assert hints_of(history("logps", 0.0, 0.0, noise=1.0, steps=200, **metrics)) == []


def test_identical_pairs_and_saturation_are_named() -> None:
    said = hints_of([{"pairs/identical_fraction": 0.8, "rewards/margins": 9.0, "rewards/accuracies": 1.0}] * 12)
    assert len(said) == 2
    assert "80%" in said[0]
    assert "saturated" in said[1]


def shares(**changes: Any) -> Shares:
    quiet = Shares(
        wall_s=100.0,
        learner_busy_s=90.0,
        draw_wait_s=0.0,
        weights_wait_s=0.0,
        publish_s=0.0,
        actor_wait_s=0.0,
        actors=2,
    )
    return replace(quiet, **changes)


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


def test_a_stretch_is_what_came_after_another() -> None:
    start = shares(wall_s=60.0, learner_busy_s=10.0, draw_wait_s=50.0, actor_wait_s=8.0)
    end = shares(wall_s=160.0, learner_busy_s=108.0, draw_wait_s=51.0, actor_wait_s=5.0, actors=3)
    assert end - start == shares(learner_busy_s=98.0, draw_wait_s=1.0, actors=3)


def test_progress_speaks_of_the_steps_after_the_first(capsys, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr("cluster.reports.trackers.time", SimpleNamespace(monotonic=lambda: now))
    folder: Any = SimpleNamespace(open_lines=lambda name: SimpleNamespace(write=lambda _: None, close=lambda: None))
    writer = MetricsWriter(folder, "mine", 101, 1, tensorboard=False)
    for step, seconds in ((2, 60.0), (3, 62.0), (51, 80.0), (101, 130.0)):
        now = seconds
        writer.write({"step": step, "loss": 0.5})
    writer.close()
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "mine 2/101  loss 0.5000",
        "mine 51/101  loss 0.5000  2.5 steps/s  20 s left",
        "mine 101/101  loss 0.5000  1.4 steps/s  0 s left",
    ]
