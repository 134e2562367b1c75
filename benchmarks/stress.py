"""The bound on staleness under random delays: real runs whose actors and learner ranks stall at random moments.

    python -m benchmarks.stress [--minutes 10]

Runs of 60 steps with two actors and two ranks, one after another, under max_staleness 0, 1, 2 and 5; one actor of
each is killed. Exits with 1 if a pair was ever older than its run allowed, by the run's own ``staleness/max`` or by the
clock: actors note when they finished a segment and with which weights, ranks note when they began a step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from bisect import bisect
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import ray

from benchmarks.delays import LOG_FOLDER, SlowActor
from benchmarks.models import with_random_weights
from benchmarks.report import machine, save, table_of
from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.run.train import train
from cluster.workers.control import NAMESPACE
from demo.model import write_model
from demo.task import write_data

STEPS, BATCH, BOUNDS = 60, 8, (1, 2, 5, 0)


def task(folder: Path) -> None:
    """The demo's data, and a random model with the demo's tokenizer."""
    write_data(folder, 500, 0)
    write_model(folder / "model", hidden=64, layers=2)
    with_random_weights(folder / "model")


def configured(folder: Path, name: str, bound: int, seed: int) -> RunConfig:
    values = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "method": "sapo",
        "seed": seed,
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"path": str(folder / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "objective": {"name": "benchmarks.delays:slow_orpo"},
        "reference": {"mode": "none"},
        "generation": {"segment_length": 3, "max_concurrent_requests": 8, "actors": 2, "cpus_per_actor": 0.5},
        "buffer": {"capacity": 64, "shards": 2},
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "batch_size": BATCH, "steps": STEPS, "tokens_per_batch": 512},
        "weights": {"max_staleness": bound},
        "logging": {"tensorboard": False},
    }
    return validate_config(values, "stress")


def kill_one_actor(name: str, lines: Path, running: Future) -> None:
    """When the run is a third through."""
    while not running.done() and not (lines.exists() and len(lines.read_text().splitlines()) >= STEPS // 3):
        time.sleep(0.2)
    if not running.done():
        ray.kill(ray.get_actor(f"{name}-actor-0", namespace=NAMESPACE))


def oldest_by_clock(log: Path) -> tuple[int, int]:
    """(segments, the most steps by which the weights of a segment's last token were behind the learner when it was
    finished). Earlier tokens of a segment may be of older weights: they were written before."""
    events = [[json.loads(line) for line in file.read_text().splitlines()] for file in log.iterdir()]
    ranks = [[e["time"] for e in noted] for noted in events if "step" in noted[0]]
    segments = [e for noted in events for e in noted if "version" in e]
    # Whoever begins its n-th step has completed n - 1.
    return len(segments), max(max(bisect(starts, e["time"]) - 1 for starts in ranks) - e["version"] for e in segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    started = time.monotonic()
    results: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="stress-", dir="/tmp") as name:
        folder = Path(name)
        task(folder)
        with mock.patch("cluster.workers.actor_factory.GenerationActor", SlowActor):
            while time.monotonic() - started < 60 * minutes:
                number = len(results)
                results.append(once(folder, f"stress-{number}", BOUNDS[number % len(BOUNDS)], number))
                print(results[-1], flush=True)
    rows = []
    for bound in sorted(BOUNDS):
        runs = [r for r in results if r["bound"] == bound]
        if runs:
            segments = sum(r["segments"] for r in runs)
            oldest = [max(r[by] for r in runs) for by in ("oldest", "oldest_by_clock")]
            rows.append([f"{bound}", f"{len(runs)}", f"{segments}", *map(str, oldest)])
    print(table_of(["max_staleness", "runs", "segments", "oldest, as recorded", "oldest, by the clock"], rows))
    save("stress", {"machine": machine(), "minutes": (time.monotonic() - started) / 60, "runs": results})
    sys.exit(any(max(r["oldest"], r["oldest_by_clock"]) > r["bound"] for r in results))


def once(folder: Path, name: str, bound: int, seed: int) -> dict[str, int]:
    """One run; how old its pairs were."""
    run = configured(folder, name, bound, seed)
    lines, log = folder / "runs" / name / "metrics.jsonl", folder / f"log-{seed}"
    log.mkdir()
    with mock.patch.dict(os.environ, {LOG_FOLDER: str(log)}), ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, run)
        kill_one_actor(name, lines, running)
        running.result()
    history = [json.loads(line) for line in lines.read_text().splitlines()]
    segments, by_clock = oldest_by_clock(log)
    recorded = max(int(m["staleness/max"]) for m in history)
    return {
        "bound": bound,
        "segments": segments,
        "oldest": recorded,
        "oldest_by_clock": by_clock,
        "steps": len(history),
    }


if __name__ == "__main__":
    main()
