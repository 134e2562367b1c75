"""The GPU benchmark on CPU with the smallest models: every section runs, and one table comes of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conversations import Lengths
from benchmarks.gpu import learner, runs
from benchmarks.gpu.__main__ import HEAD, row, run_apart
from benchmarks.gpu.scale import ARCHITECTURES, LIMITS_S, Figure, peak_of, scale
from benchmarks.learner import make_model, make_pairs, ours
from benchmarks.report import table_of
from cluster.config.loading import validate_config
from support.paths import REPOSITORY

TINY = scale("cpu", tiny=True)


def test_all_sections_together_end_within_nine_minutes():
    assert sum(LIMITS_S.values()) <= 9 * 60
    assert scale("cuda", tiny=False).limits_s == LIMITS_S


def test_every_figure_is_a_row_with_a_unit():
    figure = Figure("learner", "shared", "1B", 12345.6, 1.5, 0.41, 2_000_000_000, 3e9, 0.25, "fine")
    assert row(figure) == ["learner", "shared", "1B", "12,346", "1.50", "41%", "2.0 GB", "3.00", "0.25", "fine"]
    table = table_of(HEAD, [row(figure), row(Figure("engine", "", "", note="failed: no GPU"))])
    assert len(table.splitlines()) == 4
    assert "failed: no GPU" in table


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_the_peak_is_the_cards_own(card: str, peak: float | None):
    assert peak_of(card) == peak


def test_the_peer_that_shares_the_prompt_alone_trains_on_the_same_responses():
    model, pairs = make_model(), make_pairs("40/24/8", 2)
    for pair in pairs:
        peer = learner.whole(pair)
        assert np.array_equal(peer.chosen, pair.chosen) and np.array_equal(peer.rejected, pair.rejected)
        assert peer.shared_tokens == len(pair.prompt)
    shared, tokens = ours(model, pairs, "shared", "orpo")()
    alone, more = ours(model, [learner.whole(pair) for pair in pairs], "shared", "orpo")()
    assert alone == pytest.approx(shared, rel=1e-4)
    assert more > tokens


@pytest.mark.parametrize("model", ["smollm2", *ARCHITECTURES])
def test_every_run_is_a_valid_colocated_one(model: str, tmp_path: Path):
    lengths = Lengths(24, 24, 0.3, longest_prompt=48, longest=72, segment=8)
    run = validate_config(runs.config(TINY, model, lengths, tmp_path), "test")
    assert run.cluster.colocate
    assert (run.model.lora is not None) == (model == "8B")


def test_a_runs_figure_leaves_the_first_step_out():
    steps = [
        {"loss": 1.0, "time/step_s": 60.0, "time/train_s": 50.0, "time/draw_wait_s": 10.0},
        {"loss": 0.5, "time/step_s": 2.0, "time/train_s": 1.0, "time/draw_wait_s": 0.5, "time/publish_s": 0.5},
    ]
    figure = runs.figure("8B", "48/24/8", 8, steps)
    assert (figure.pairs_per_s, figure.seconds) == (4.0, 2.0)
    assert "loss 0.500" in figure.note


def test_a_section_that_takes_too_long_or_fails_leaves_a_line():
    hurried = dataclasses.replace(TINY, limits_s=dict.fromkeys(LIMITS_S, 0.01))
    (figure,) = run_apart("engine", hurried, tiny=True)
    assert figure.note == "not finished within 0.01 s"


@pytest.mark.slow
def test_a_section_gives_its_figures():
    """One of the four; the others take minutes here. By hand: ``python -m benchmarks.gpu --tiny --device cpu``."""
    wanted = ["--tiny", "--device", "cpu", "--sections", "engine"]
    command = [sys.executable, "-m", "benchmarks.gpu", *wanted]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    figures = {(line[0], line[1]): line for line in table[2:]}
    assert {section for section, _ in figures} == {"engine"}
    (note,) = [line[-1] for line in figures.values()]
    assert note == "8 requests a round"
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "gpu-tiny.json").read_text())
    assert len(results["figures"]) == len(figures)
