"""A board as it is read: what is waited for, and what is not known is not shown."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from cluster.status.board import ActorLine, Board, BufferLine, EventLine
from cluster.status.table import render

BOARD = Board(
    run="mine",
    folder="/runs/mine",
    host="node-1",
    method="sapo",
    step=40,
    total_steps=100,
    doing="draw",
    since=1000.0,
    written=1012.0,
)


def shown(board: Board, *, live: bool = True, now: float = 1013.0) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(render(board, live=live, clock=lambda: now))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_first_lines_say_where_the_run_is_and_what_it_waits_for():
    text = shown(replace(BOARD, step_s=4.0, tokens_per_s=1234.0))
    assert "mine  sapo  step 40/100  4.0 s/step  1,234 tokens/s  4 min 00 s left" in text
    assert "now: waits for pairs, since 12 s" in text
    assert "node-1:/runs/mine" in text


def test_a_start_shows_its_phase_and_no_figures():
    text = shown(replace(BOARD, step=0, doing="setting up DeepSpeed"))
    assert "now: setting up DeepSpeed, since 12 s" in text
    assert "learner" not in text and "buffer" not in text and "left" not in text


def test_learner_buffer_actors_and_events_are_rows():
    text = shown(
        replace(
            BOARD,
            metrics={"loss": 0.25, "rewards/margins": None, "staleness/max": 2.0},
            learner_idle={"pairs": 0.5, "weights": 0.0},
            buffer=BufferLine(10, 64, 3, 40, 2, 1, 0),
            actors=(ActorLine("actor-0", "running", 39, 12_000, 51.0, 8, 0.25), ActorLine("actor-1", "starting")),
            bottleneck="generation-bound",
            events=(EventLine(1000.0, "WARNING", "actor-2 failed [oops]"),),
        )
    )
    assert "loss 0.25" in text and "margin" not in text and "largest 2" in text
    assert "pairs 50%" in text
    assert "10 of 64 pairs  3 being generated" in text and "40 inserted, 2 identical, 1 discarded, 0 failed" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("actor-")]
    assert rows == [
        ["actor-0", "running", "39", "8", "51", "12,000", "25%"],
        ["actor-1", "starting", "-", "0", "0", "0", "-"],
    ]
    assert "balance: generation-bound" in text and "actor-2 failed [oops]" in text


def test_hundreds_of_actors_are_a_screenful():
    actors = tuple(ActorLine(f"actor-{i}", "running", 1, 10, 2.0, 1, 0.5) for i in range(256))
    text = shown(replace(BOARD, actors=actors))
    assert len(text.splitlines()) < 30
    assert "240 more" in text and "480" in text


def test_a_pair_shows_both_responses_with_their_segments():
    sample = {"prompt": "write 3", "chosen": "1 ⟦2⟧ 3", "rejected": "1 ⟦[b]9⟧ 3", "step": 40, "index": 7, "margin": 0.5}
    text = shown(replace(BOARD, sample=sample))
    assert "chosen    1 ⟦2⟧ 3" in text and "rejected  1 ⟦[b]9⟧ 3" in text and "margin 0.5" in text


def test_an_actor_and_a_driver_that_are_silent_are_said_to_be():
    text = shown(replace(BOARD, actors=(ActorLine("actor-0", "running", 1, silent_s=90.0),)), now=1100.0)
    assert "silent for 1 min 30 s" in text
    assert "its driver has said nothing for 1 min 28 s" in text


def test_a_run_that_has_ended_says_how_and_waits_for_nothing():
    text = shown(replace(BOARD, doing="complete"), live=False)
    assert "complete at" in text and "now:" not in text and "left" not in text
