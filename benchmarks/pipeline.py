"""End to end: pairs trained per second, this system against SAPO done the paper's way, alternating runs.

Run from the repository root, after ``python -m demo data`` and an SFT start (``make demo`` leaves both):
``python -m benchmarks.pipeline [--rounds 3] [--steps 60]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import machine, save, table_of

WARM_STEPS = 10
"""First steps of each run that are not counted: caches, first kernels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--peer", nargs=2, metavar=("CONFIG", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        _peer(arguments.peer[0], int(arguments.peer[1]))
        return
    ways = {
        "paper's way": lambda: _run_peer(arguments.config, arguments.steps),
        "lockstep": lambda: _run_ours(arguments.config, arguments.steps, 0),
        "overlapped": lambda: _run_ours(arguments.config, arguments.steps, 2),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            rounds[name].append(way())
            print(f"{name}: {rounds[name][-1]}", flush=True)
    peer = statistics.median(r["pairs_per_s"] for r in rounds["paper's way"])
    rows = []
    for name, results in rounds.items():
        rates = [r["pairs_per_s"] for r in results]
        idle = statistics.median(r["learner_idle"] for r in results)
        rows.append([name, f"{statistics.median(rates):.1f}", f"{min(rates):.1f}-{max(rates):.1f}",
                     f"{statistics.median(rates) / peer:.2f}", f"{idle:.0%}"])  # fmt: skip
    print(table_of(["way", "pairs/s", "range", "ratio", "learner idle"], rows))
    save("pipeline", {"machine": machine(), "config": arguments.config, "steps": arguments.steps, "rounds": rounds})


def _run_ours(config: str, steps: int, max_staleness: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, "-m", "cluster", "train", config, "name=bench", f"output_dir={folder}",
                f"learner.steps={steps}", f"weights.max_staleness={max_staleness}", "logging.tensorboard=false",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines][WARM_STEPS:]
    wall = sum(m["time/step_s"] for m in metrics)
    batch = (metrics[-1]["pairs/drawn"] - metrics[0]["pairs/drawn"]) / (len(metrics) - 1)
    idle = sum(m["time/learner_idle_s"] for m in metrics) / wall
    return {"pairs_per_s": len(metrics) * batch / wall, "learner_idle": idle}


def _run_peer(config: str, steps: int) -> dict[str, float]:
    # A process of its own, so that both sides start equally cold and own the machine in turn.
    command = [sys.executable, "-m", "benchmarks.pipeline", "--peer", config, str(steps)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _peer(path: str, steps: int) -> None:
    from benchmarks import paper_way
    from cluster.config import load_config
    from cluster.data import load_table

    config = load_config(path)
    table, tokenizer, _ = load_table(config.data, config.model, config.method)
    started = time.monotonic()
    seconds = paper_way.train(config, table, tokenizer.eos_token_id, steps)[WARM_STEPS:]
    assert time.monotonic() > started
    print(json.dumps({"pairs_per_s": len(seconds) * config.learner.batch_size / sum(seconds), "learner_idle": 0.0}))


if __name__ == "__main__":
    main()
