"""Whole runs on the real stack: Ray, two DeepSpeed ranks, vLLM actors, the buffer, and weights flowing back."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from benchmarks.chaos.faults import parts_of
from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.run.stopping import Stopped
from cluster.run.train import RunResult, train
from cluster.storage.json_lines import read_objects
from cluster.storage.recording import read_batches
from cluster.workers.control import Request, find_control
from cluster.workers.ray_calls import NAMESPACE

pytestmark = pytest.mark.slow

STEPS, BATCH = 8, 8
TIMES = ("time/", "buffer/blocked")


def config(task: Path, output: Path, name: str, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": name,
        "output_dir": str(output),
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {"path": str(task / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "objective": {"name": "dpo"},
        "reference": {"mode": "ema", "interval": 3},
        "generation": {"segment_length": 3, "max_concurrent_requests": 16},
        "buffer": {"capacity": 24},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "learner": {"ranks": 2, "zero_stage": 3, "batch_size": BATCH, "steps": STEPS, "tokens_per_batch": 256},
        "weights": {"max_staleness": 0, "parity_every": 3},
        "logging": {"record_pairs": True, "samples_every": 4},
        "checkpoint": {"every": 4, "keep": 5},
    }
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
    return validate_config(values, "test")


def happened(run: Path, event: str) -> int:
    """How often."""
    return (run / "events.jsonl").read_text().count(f'"event": "{event}"')


def metrics(result: RunResult) -> list[dict[str, Any]]:
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same_weights(a: RunResult, b: RunResult) -> bool:
    pairs = [(weights(getattr(a, which)), weights(getattr(b, which))) for which in ("policy", "ema")]
    return all(torch.equal(x[name], y[name]) for x, y in pairs for name in x)


@pytest.fixture(scope="module")
def lockstep(ray_local, task, tmp_path_factory) -> RunResult:
    return train(config(task, tmp_path_factory.mktemp("runs"), "one"))


def recorded(result: RunResult) -> list[tuple[Any, ...]]:
    """What was drawn, in order."""
    batches = read_batches(result.folder / "pairs.arrow")
    return [(p.index, p.start, p.replacement.tolist(), p.versions.tolist()) for batch in batches for p in batch]


def test_resuming_on_two_actors_and_four_shards_gives_the_run_that_would_have_been_and_evaluating_changes_nothing(
    lockstep, task, tmp_path
):
    cut = tmp_path / "one"
    shutil.copytree(lockstep.folder, cut)
    shutil.rmtree(cut / "checkpoints" / f"step-{STEPS}")
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "write 3 numbers with sum 12 ascending"}\n' * 2)
    evaluation = {"prompts": str(tmp_path / "prompts.jsonl"), "check": "demo.task:check", "keep_best": "sampled"}
    changes: dict[str, Any] = {
        "generation": {"actors": 2},
        "buffer": {"shards": 4},
        "evaluation": {"every": 3, "max_tokens": 4} | evaluation,
        "checkpoint": {"keep": 1},
    }
    resumed = train(config(task, tmp_path, "one", **changes), resume=True)
    unchanged = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics(resumed)]
    assert unchanged == metrics(lockstep)
    assert same_weights(resumed, lockstep)
    assert recorded(resumed) == recorded(lockstep)
    scored = read_objects(resumed.folder / "evaluations.jsonl", "greedy", "sampled")
    assert [(line["step"], line["weights"], line["prompts"]) for line in scored] == [(6, "ema", 2), (STEPS, "ema", 2)]
    best = json.loads((resumed.folder / "best.json").read_text())
    assert best == {"step": 6, "figure": "sampled", "mean": scored[0]["sampled"]["mean"]} or best["step"] == STEPS
    assert (resumed.folder / "checkpoints" / f"step-{best['step']}" / "ema").is_dir()
    assert "failed" not in (resumed.folder / "run.log").read_text()


def test_ranks_and_engines_that_take_turns_give_the_same_run(lockstep, task, tmp_path):
    """On shared devices: whoever has not the turn has given its memory back. Goes on from a checkpoint, writes one."""
    cut = tmp_path / "one"
    shutil.copytree(lockstep.folder, cut)
    for step in range(STEPS // 2 + 1, STEPS + 1):
        shutil.rmtree(cut / "checkpoints" / f"step-{step}", ignore_errors=True)
    changes: dict[str, Any] = {"generation": {"actors": 2}, "cluster": {"colocate": True}, "checkpoint": {"every": 3}}
    turns = train(config(task, tmp_path, "one", **changes), resume=True)
    assert same_weights(turns, lockstep)
    assert "failed" not in (turns.folder / "run.log").read_text()
    losses = [[step["loss"] for step in metrics(run)] for run in (turns, lockstep)]
    assert losses[0] == losses[1]


def test_run_folder_holds_what_was_promised(lockstep):
    assert [m["step"] for m in metrics(lockstep)] == list(range(1, STEPS + 1))
    first = json.loads((lockstep.folder / "metrics.jsonl").read_text().splitlines()[0])
    promised = {
        "step",
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
        "lr",
        "pairs/inserted",
        "pairs/drawn",
        "pairs/identical_fraction",
        "staleness/mean",
        "staleness/max",
        "buffer/size",
        "time/step_s",
        "time/learner_idle_s",
        "tokens/trained",
        "tokens/generated",
        "weights/version",
        "pairs/eos_fraction",
        "pairs/edit_distance",
        "pairs/length_difference",
        "age/pairs_mean",
        "draws/mean",
    }
    assert promised <= first.keys()
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same before the first step
    last = metrics(lockstep)[-1]
    assert last["staleness/max"] == 0
    assert last["buffer/size"] <= 24
    samples = [json.loads(line) for line in (lockstep.folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {4, 8}
    assert all("⟦" in sample["chosen"] and "⟦" in sample["rejected"] for sample in samples)
    assert list((lockstep.folder / "tensorboard").iterdir())
    checks = [m for m in metrics(lockstep) if "weights/parity_mean_nats" in m]
    assert [m["step"] for m in checks] == [3, 6]
    for m in checks:
        mean, p99, largest = (m[f"weights/parity_{name}_nats"] for name in ("mean", "p99", "max"))
        assert 0 < mean < p99 <= largest < 1e-4
    assert sorted(p.name for p in (lockstep.folder / "checkpoints").iterdir()) == ["step-4", "step-8"]


def test_the_bottleneck_report_leaves_out_how_long_everything_took_to_start(lockstep):
    lines = [json.loads(line) for line in (lockstep.folder / "metrics.jsonl").read_text().splitlines()]
    steps_s, idle_s = (sum(line[name] for line in lines[1:]) for name in ("time/step_s", "time/learner_idle_s"))
    said = re.match(r"learner idle (\d+)%", lockstep.bottleneck)
    assert said
    # The time between the steps counts too, so that the share is that of the steps or less.
    assert 0 < int(said[1]) / 100 <= idle_s / steps_s + 0.01


def test_replay_of_recorded_pairs_needs_no_engine_and_gives_the_same_policy(lockstep, task, tmp_path):
    """And held-out pairs are evaluated meanwhile, which changes nothing."""
    recorded = lockstep.folder / "pairs.arrow"
    pair = {"prompt": [{"role": "user", "content": "write 3 numbers"}], "chosen": "1 2 9", "rejected": "1 2"}
    (tmp_path / "held.jsonl").write_text((json.dumps(pair) + "\n") * 5)
    held_out = {"held_out": str(tmp_path / "held.jsonl"), "held_out_every": 3}
    replayed = train(config(task, tmp_path, "replay", method="replay", data={"path": str(recorded)} | held_out))
    assert [m["loss"] for m in metrics(replayed)] == [m["loss"] for m in metrics(lockstep)]
    evaluated = [number for number, line in enumerate(metrics(replayed), 1) if "eval/loss" in line]
    assert evaluated == [3, 6, 8]
    assert {"eval/rewards/margins", "eval/rewards/accuracies"} <= metrics(replayed)[-1].keys()
    assert same_weights(replayed, lockstep)


def test_a_run_that_is_stopped_while_its_actor_stands_still_saves_at_once_and_goes_on_as_if_nothing_was(
    lockstep, task, tmp_path
):
    folder = tmp_path / "held"
    # A step at which it stops is without its parity check.
    changes = {"checkpoint": {"every": 0}, "recovery": {"stall_s": 600.0}, "weights": {"parity_every": 0}}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, config(task, tmp_path, "held", **changes))
        lines = folder / "metrics.jsonl"
        while not (running.done() or (lines.exists() and len(lines.read_text().splitlines()) >= 2)):
            time.sleep(0.01)
        (engine,) = parts_of([psutil.Process()], "actor")
        engine.suspend()
        ray.get(find_control("held").call("ask", Request("stop")))
        with pytest.raises(Stopped, match=r"stopped at step [2-7] on request"):
            running.result(timeout=300)
    assert len(list((folder / "checkpoints").iterdir())) == 1
    result = train(config(task, tmp_path, "held", **changes), resume=True)
    expected = [{k: v for k, v in line.items() if "parity" not in k} for line in metrics(lockstep)]
    assert metrics(result) == expected
    assert same_weights(result, lockstep)


def test_overlapped_run_survives_an_actor_and_grows_on_request(ray_local, task, tmp_path):
    run = config(
        task,
        tmp_path,
        "overlap",
        weights={"max_staleness": 2},
        learner={"steps": 60, "zero_stage": 2},
        checkpoint={"every": 0},
        objective={"name": "orpo"},
        reference={"mode": "none"},
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, run)
        lines = tmp_path / "overlap" / "metrics.jsonl"
        while not (running.done() or (lines.exists() and len(lines.read_text().splitlines()) >= 3)):
            time.sleep(0.1)
        ray.kill(ray.get_actor("overlap-actor-0", namespace=NAMESPACE))
        ray.get(find_control("overlap").call("ask", Request("actors", 1)))
        result = running.result()
    history = metrics(result)
    assert [m["step"] for m in history] == list(range(1, 61))
    assert max(m["staleness/max"] for m in history) <= 2
    assert max(m["staleness/max"] for m in history) > 0
    # Whoever wrote a pair: the replacement did, and so did the one that joined.
    batches = read_batches(result.folder / "pairs.arrow")
    assert {pair.actor for batch in batches for pair in batch} >= {"actor-0", "actor-1", "actor-2"}
    last = history[-1]
    assert last["pairs/inserted"] + last["pairs/identical"] >= 60 * BATCH


@pytest.mark.chaos
def test_after_each_death_the_run_goes_on_by_itself_and_is_the_run_that_would_have_been(
    ray_local, lockstep, task, tmp_path
):
    """Of the coordinator, a shard and a rank. Engines stay, and ranks too where it was none of theirs."""
    folder = tmp_path / "mortal"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, config(task, tmp_path, "mortal", checkpoint={"every": 2}))

        def wait_until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert not running.done(), running.exception() or "it has ended"
                time.sleep(0.01)

        wait_until((folder / "checkpoints" / "step-2").exists)
        engine = ray.get_actor("mortal-actor-0", namespace=NAMESPACE)
        ranks = [ray.get_actor(f"mortal-rank-{rank}", namespace=NAMESPACE) for rank in (0, 1)]
        for deaths, victim in enumerate(("coordinator", "shard-0", "rank-1")):
            name = f"mortal-{victim}" if not deaths or "rank" in victim else f"mortal-attempt-{deaths + 1}-{victim}"
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            wait_until(lambda deaths=deaths: happened(folder, "attempt failed") > deaths)  # type: ignore[misc]
            assert ray.get(engine.ready.remote()) == "actor-0", "the engine stayed"
            if victim != "rank-1":
                ray.get([rank.settled.remote() for rank in ranks])  # they stayed too
                wait_until(lambda deaths=deaths: happened(folder, "recovered") > deaths)  # type: ignore[misc]
                wait_until((folder / "checkpoints" / "step-4").exists)
        result = running.result()
    assert metrics(result) == metrics(lockstep)
    assert same_weights(result, lockstep)
    log = (result.folder / "run.log").read_text()
    assert log.count("it goes on from step-") == 3
    assert log.count("the ranks begin again") == 2
