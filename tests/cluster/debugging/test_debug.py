"""The loop in one process: breakpoints in learner and actor code are reached, and each phase says what it did."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from buffer.messages import Finished, Outcome
from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from cluster.debugging.local_buffer import LocalBuffer
from cluster.debugging.session import ALONE
from cluster.debugging.stops import Stops, describe
from contracts.pair import ReferenceScore
from learner.messages import StepReport
from learner.model.packing import pack
from support.pairs import generated
from support.paths import REPOSITORY

HOOK = """
import sys
import torch

def hit():
    names, frame = [], sys._getframe(1)
    while frame:
        names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    print("STOP", " < ".join(names[:12]))

def loss(scores):
    breakpoint()
    value = scores.rejected - scores.chosen
    return value.sum(), {}
"""
"""A user's own module: what ``breakpoint()`` calls, and an objective with a breakpoint in it."""


@pytest.fixture
def alone(tmp_path: Path) -> RunConfig:
    """Of a run with several of everything, as it is debugged."""
    (tmp_path / "run.yaml").write_text(
        "{model: {path: m}, data: {path: d}, learner: {batch_size: 4, ranks: 4}, generation: {actors: 3}, "
        "buffer: {shards: 2}, weights: {max_staleness: 2}}"
    )
    return load_config(tmp_path / "run.yaml", ["learner.batch_size=2", *ALONE])


@pytest.mark.slow
def test_breakpoints_in_actor_and_learner_are_reached(task, tmp_path: Path):
    (tmp_path / "mine.py").write_text(HOOK)
    command = [
        *(sys.executable, "-m", "cluster", "debug", str(REPOSITORY / "configs" / "demo.yaml")),
        *(f"model.path={task / 'model'}", f"data.path={task / 'train.jsonl'}", "objective.name=mine:loss"),
        *("learner.batch_size=2", "generation.max_concurrent_requests=2", "data.cache_dir=null"),
        *("--steps", "2", "--break", "write", "--break", "publish"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONBREAKPOINT": "mine.hit", "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    stops = [line for line in done.stdout.splitlines() if line.startswith("STOP")]
    assert any("Stops.written" in stop and "GenerationActor._insert" in stop for stop in stops), stops
    assert sum(stop.startswith("STOP loss") and "LearnerRank._step" in stop for stop in stops) == 2, stops
    assert sum("Stops.published" in stop for stop in stops) == 2
    for said in ("write: index 0: ", "draw: 2 pairs", "  pass 0: 1 row(s)", "step 1: loss", "publish: the actor has"):
        assert said in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("step ")][1].startswith("step 2: loss")


def test_a_run_is_debugged_with_one_of_everything_and_in_lockstep(alone: RunConfig):
    parts = alone.learner.ranks, alone.generation.actors, alone.buffer.shards, alone.weights.max_staleness
    assert (*parts, alone.learner.batch_size) == (1, 1, 1, 0, 2)


def test_what_an_actor_inserts_is_drawn_with_what_is_known_of_it(alone: RunConfig):
    seen: list[int] = []

    async def body() -> None:
        buffer = LocalBuffer(alone, lambda finished: seen.extend(done.index for done in finished))
        leased = await buffer.lease("actor-0", 8)
        assert leased == [0, 1]
        working = asyncio.ensure_future(asyncio.sleep(3600))
        drawing = asyncio.ensure_future(buffer.draw(working))
        for index in leased:
            await buffer.insert("actor-0", [Finished(index, Outcome.INSERTED, generated(index))])
        draw = await drawing
        assert sorted(pair.index for pair in draw.pairs) == seen == [0, 1]
        await buffer.annotate(draw.keys, [ReferenceScore(3, np.ones(5, np.float32)), None])
        await buffer.advance(1)
        assert await buffer.lease("actor-0", 8) == [2, 3]
        await buffer.close()
        assert await buffer.lease("actor-0", 8) is None
        working.cancel()

    asyncio.run(body())


def test_an_actor_that_fails_ends_the_wait_for_its_pairs(alone: RunConfig):
    async def body() -> None:
        async def work() -> None:
            raise RuntimeError("the engine is dead")

        buffer = LocalBuffer(alone, lambda finished: None)
        await buffer.draw(asyncio.ensure_future(work()))

    with pytest.raises(RuntimeError, match="the engine is dead"):
        asyncio.run(body())


def test_each_phase_is_printed_and_only_those_asked_for_stop(monkeypatch: pytest.MonkeyPatch, capsys):
    stopped: list[str] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stopped.append(sys._getframe(1).f_code.co_name))
    stops = Stops(["draw"], lambda tokens: " ".join(map(str, tokens.tolist())))
    pair = generated(7)
    stops.written([Finished(7, Outcome.INSERTED, pair), Finished(8, Outcome.IDENTICAL)])
    stops.drawn([pair], None, pack([pair], 64, "shared"))
    stops.step = 1
    stops.stepped([pair], StepReport({"loss": 0.5}, [None], [0.25]))
    stops.published(1)
    said = capsys.readouterr().out.splitlines()
    assert stopped == ["drawn"]
    assert said[:5] == [
        "write: index 7: inserted",
        "  prompt    1 2",
        "  chosen    3⟦ 4⟧ 5",
        "  rejected  3⟦ 9 8⟧ 5",
        "write: index 8: identical",
    ]
    assert "draw: 1 pairs: [7]" in said
    assert said[-3:] == ["step 1: loss 0.5", "  index 7: margin 0.25", "publish: the actor has the EMA of step 1"]


def test_a_packed_batch_says_which_stretch_follows_which():
    (shared,) = pack([generated(7)], 64, "shared")
    assert describe(shared, [generated(7)]) == (
        "1 row(s) of 8 tokens, 6 scored, pairs [7]: [0:3], [3:5] after [0:3], [5:8] after [0:3]"
    )
    (padded,) = pack([generated(7)], 64, "padded")
    assert describe(padded, [generated(7)]).endswith("padded")
