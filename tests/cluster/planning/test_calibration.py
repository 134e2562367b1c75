"""A finished run's metrics give the factors with which the model repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import load_config
from cluster.planning.calibration import calibrate, measure
from cluster.planning.model_shape import read_shape
from cluster.planning.throughput import DEVICES, step_time
from cluster.reports.page.run_record import read_run
from contracts.errors import UserError
from demo.model import write_model
from support.run_folders import make_run, write_lines

STEP_S, TRAIN_S, PUBLISH_S, WAIT_S = 0.5, 0.35, 0.04, 0.06


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps of half a second; the actor was held back for a fifth of the time."""
    write_model(tmp_path / "model")
    folder = make_run(
        tmp_path / "r",
        model={"path": str(tmp_path / "model"), "dtype": "float32"},
        data={"path": "rows.jsonl", "max_length": 32, "max_prompt_length": 16},
        generation={"segment_length": 4},
        weights={"max_staleness": 2},
        learner={"batch_size": 32, "tokens_per_batch": 2048},
    )
    write_lines(folder / "metrics.jsonl", map(metrics, range(1, 41)))
    with (folder / "run.log").open("a") as file:
        file.write("2026-11-27 02:59:21,040 INFO learner idle 4%, actors idle 20%: balanced\n")
    return folder


def metrics(step: int) -> dict[str, Any]:
    warm = step > 2  # the first steps are slow, and are left out
    return {
        "step": step,
        "tokens/trained": 32 * 22.0,
        "tokens/generated": 32 * 4 * step,
        "time/step_s": STEP_S if warm else 60.0,
        "time/train_s": TRAIN_S,
        "time/publish_s": PUBLISH_S,
        "time/draw_wait_s": WAIT_S,
    }


def test_a_run_is_measured_without_its_slow_start(run: Path) -> None:
    found = measure(read_run(run), load_config(run / "config.yaml"))
    assert (found.step_s, found.learner_s, found.publication_s) == pytest.approx((STEP_S, TRAIN_S, PUBLISH_S))
    assert found.rest_s == pytest.approx(STEP_S - TRAIN_S - PUBLISH_S - WAIT_S)
    assert found.generation_s == pytest.approx(0.8 * STEP_S)
    assert (found.workload.pair, found.workload.segment) == pytest.approx((22, 4))


def test_a_calibrated_model_repeats_the_run(run: Path) -> None:
    factors = calibrate(run, DEVICES["cpu"], None)
    config = load_config(run / "config.yaml")
    workload = measure(read_run(run), config).workload
    again = step_time(config, read_shape(config.model), workload, DEVICES["cpu"], None, 1, 1, factors)
    assert (again.learner_s, again.publication_s) == pytest.approx((TRAIN_S, PUBLISH_S))
    assert again.generation_s == pytest.approx(0.8 * STEP_S)
    # The learner waited a little although it is the slower side: the model has no such jitter.
    assert again.total_s == pytest.approx(STEP_S - WAIT_S)


def test_a_run_that_says_too_little_is_one_line(run: Path) -> None:
    (run / "run.log").write_text("")
    with pytest.raises(UserError, match="how idle the actors were"):
        calibrate(run, DEVICES["cpu"], None)
    write_lines(run / "metrics.jsonl", map(metrics, range(1, 4)))
    with pytest.raises(UserError, match="3 steps are too few"):
        calibrate(run, DEVICES["cpu"], None)
