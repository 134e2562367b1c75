"""End to end: pairs trained per second, this system against SAPO done the paper's way, alternating runs.

    python -m benchmarks.pipeline [--shape demo conversations recipe] [--rounds 2] [--steps 40]

``demo``: configs/demo.yaml, sequences of some 20 tokens and segments of 4 (needs what ``make demo`` leaves).
``conversations`` and ``recipe``: the same architecture on rows as long as short conversations, and as long as those of
the paper's recipes with their limits and segments of 256 (benchmarks/conversations.py); DPO.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import conversations
from benchmarks.report import machine, save, table_of
from cluster.workers.resources import LARGE_BLOCKS

WARM_STEPS = 10
"""First steps of each run that are not counted: caches, first kernels."""

STEPS = {"demo": 100, "conversations": 40, "recipe": 24}

WAYS = {
    "lockstep": ["weights.max_staleness=0"],
    "overlapped": ["weights.max_staleness=2"],
    "overlapped, published every 4": ["weights.max_staleness=8", "weights.publish_every=4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help=f"default by shape: {STEPS}")
    parser.add_argument("--peer", nargs=2, metavar=("CONFIG", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        _peer(arguments.peer[0], int(arguments.peer[1]))
        return
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for shape in arguments.shape:
            config = "configs/demo.yaml" if shape == "demo" else conversations.write(shape, Path(folder))
            results[shape] = _compare(shape, config, arguments.rounds, arguments.steps or STEPS[shape])
    save("pipeline", {"machine": machine(), "steps": arguments.steps or STEPS, "rounds": results})


def _compare(shape: str, config: str, count: int, steps: int) -> dict[str, list[dict[str, float]]]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("paper's way", *WAYS)}
    for _ in range(count):
        rounds["paper's way"].append(_run_peer(config, steps))
        for name, overrides in WAYS.items():
            rounds[name].append(_run_ours(config, steps, overrides))
    print(f"\n{shape}: {config}, {steps} steps, {count} rounds; ratio to the paper's way in the same round")
    rows = []
    for name, runs in rounds.items():
        pairs, idle, actors = ([run[key] for run in runs] for key in ("pairs_per_s", "learner_idle", "actors_idle"))
        ratios = [ours / peer["pairs_per_s"] for ours, peer in zip(pairs, rounds["paper's way"], strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(pairs):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                f"{statistics.median(idle):.0%}",
                f"{statistics.median(actors):.0%}",
            ]
        )
    print(table_of(["way", "pairs/s", "ratio", "range", "learner idle", "actors idle"], rows), flush=True)
    return rounds


def _run_ours(config: str, steps: int, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        printed = subprocess.run(
            [
                sys.executable,
                "-m",
                "cluster",
                "train",
                config,
                "name=bench",
                f"output_dir={folder}",
                f"learner.steps={steps}",
                *overrides,
                "logging.tensorboard=false",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines][WARM_STEPS:]
    wall = sum(m["time/step_s"] for m in metrics)
    batch = (metrics[-1]["pairs/drawn"] - metrics[0]["pairs/drawn"]) / (len(metrics) - 1)
    idle = sum(m["time/learner_idle_s"] for m in metrics) / wall
    # Actors are asked for their idle time at the end alone: this share is of all steps but the first.
    actors_idle = int(re.findall(r"actors\s+idle\s+(\d+)%", printed)[-1]) / 100
    return {"pairs_per_s": len(metrics) * batch / wall, "learner_idle": idle, "actors_idle": actors_idle}


def _run_peer(config: str, steps: int) -> dict[str, float]:
    # A process of its own, so that both sides start equally cold and own the machine in turn; malloc set as ours is.
    command = [sys.executable, "-m", "benchmarks.pipeline", "--peer", config, str(steps)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | LARGE_BLOCKS).stdout
    return json.loads(out.splitlines()[-1])


def _peer(path: str, steps: int) -> None:
    from benchmarks import paper_way
    from cluster.config.loading import load_config
    from cluster.data.ends import read_ends
    from cluster.data.loading import load_tables
    from cluster.data.tokenizer import load_tokenizer

    config = load_config(path)
    tokenizer = load_tokenizer(config.model, config.data.chat_template, config.data.bos)
    table = load_tables(config.data, config.method, tokenizer, read_ends(config.model, tokenizer)).train
    seconds = paper_way.train(config, table, tokenizer.eos_token_id, steps)[WARM_STEPS:]
    pairs_per_s = len(seconds) * config.learner.batch_size / sum(seconds)
    print(json.dumps({"pairs_per_s": pairs_per_s, "learner_idle": 0.0, "actors_idle": 0.0}))


if __name__ == "__main__":
    main()
