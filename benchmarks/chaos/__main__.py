"""Chaos: runs of the command line that are hit at random moments, each compared with the same run left in peace.

    python -m benchmarks.chaos [--runs 4] [--faults 6] [--seed 0] [--bounds 0 2]

Every run is ``sapo train`` in a process of its own: tiny model, two ranks, two actors, two shards, a checkpoint every
4 of 60 steps. Faults come one after the other, each a random moment after the run has gone on since the one before:
SIGKILL and SIGSTOP of every kind of process, a flipped bit in the newest checkpoint. Afterwards: the run has ended by
itself with status 0, its steps are without gap or double, staleness is within the bound, no process of it is left, and
in lockstep its metrics and weights equal those of the undisturbed run bit for bit. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.chaos.faults import ALL, Fault, strike, wait_until
from benchmarks.models import with_random_weights
from benchmarks.report import machine, save, table_of
from demo.model import write_model
from demo.task import write_data

STEPS, EVERY = 60, 4
STALL_S = 15.0
"""recovery.stall_s: a tiny model's step takes milliseconds."""
RUN_S = 1800.0


@dataclass
class Outcome:
    """What became of a run that was hit."""

    bound: int
    struck: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    """From each fault to the next step, in seconds."""
    wrong: list[str] = field(default_factory=list)
    """What should be true of it and is not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=6, help="per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", type=int, nargs="+", default=[0, 2], help="weights.max_staleness, in turn")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as name:
        folder = Path(name)
        write_task(folder)
        peaceful = run(folder, "peaceful", 0, [], chance)
        assert not peaceful.wrong, peaceful.wrong
        for number in range(arguments.runs):
            bound = arguments.bounds[number % len(arguments.bounds)]
            faults = chance.choices(ALL, k=arguments.faults)
            outcomes.append(run(folder, f"run-{number}", bound, faults, chance))
            print(f"run {number}, staleness {bound}: {outcomes[-1]}", flush=True)
    print(table_of(["fault", "struck", "median s to the next step", "longest"], by_fault(outcomes)))
    save("chaos", {"machine": machine(), "runs": [vars(outcome) for outcome in outcomes]})
    sys.exit(any(outcome.wrong for outcome in outcomes))


def write_task(folder: Path) -> None:
    """The demo's data, and a random model with the demo's tokenizer."""
    write_data(folder, 500, 0)
    write_model(folder / "model", hidden=64, layers=2)
    with_random_weights(folder / "model")


def run(folder: Path, name: str, bound: int, faults: list[Fault], chance: random.Random) -> Outcome:
    """One run under these faults, and what is wrong with it afterwards."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings(folder, name, bound)))
    here = folder / "runs" / name
    outcome = Outcome(bound)
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "cluster", "train", str(config)], stdout=log, stderr=log)
        driver = psutil.Process(process.pid)
        for fault in faults:
            at = steps_done(here) + chance.randint(1, 6)
            if not wait_until(partial(reached, here, at), driver, RUN_S):
                break
            time.sleep(chance.random())
            if strike(fault, driver, here / "checkpoints", chance):
                outcome.struck.append(str(fault))
                began = time.monotonic()
                if wait_until(NextStep(here), driver, RUN_S):
                    outcome.recovery_s.append(time.monotonic() - began)
        family = driver.children(recursive=True)
        try:
            status = process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = -1
    time.sleep(2.0)
    outcome.wrong = findings(folder, name, bound, status)
    outcome.wrong += [f"{p.name()} is left" for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return outcome


def settings(folder: Path, name: str, bound: int) -> dict[str, Any]:
    return {
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"path": str(folder / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "objective": {"name": "dpo"},
        "reference": {"mode": "ema", "interval": 5},
        "generation": {"segment_length": 3, "max_concurrent_requests": 8, "actors": 2, "cpus_per_actor": 0.5},
        "buffer": {"capacity": 64, "shards": 2},
        "optimizer": {"lr": 1e-3},
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "batch_size": 8, "steps": STEPS, "tokens_per_batch": 512},
        "weights": {"max_staleness": bound, "parity_every": 0, "timeout_s": STALL_S},
        "checkpoint": {"every": EVERY, "keep": 3},
        "recovery": {"restarts": 1000, "replacements": 1000, "backoff_s": 0.1, "stall_s": STALL_S},
        "logging": {"tensorboard": False, "record_pairs": True},
    }


def findings(folder: Path, name: str, bound: int, status: int) -> list[str]:
    """What is wrong with an ended run; of one in lockstep also where it differs from the peaceful one."""
    here = folder / "runs" / name
    wrong = []
    if status:
        last = (folder / f"{name}.log").read_text().strip().splitlines()[-1:]
        wrong.append(f"ended with status {status}: {' '.join(last)}")
    metrics = history(here)
    steps = [int(line["step"]) for line in metrics]
    if steps != list(range(1, STEPS + 1)):
        wrong.append(f"steps {steps}")
    if any(line["staleness/max"] > bound for line in metrics):
        wrong.append(f"staleness over {bound}")
    if any(line["pairs/drawn"] != 8 * line["step"] for line in metrics):
        wrong.append("drawn pairs do not add up")
    if bound == 0 and name != "peaceful":
        peace = folder / "runs" / "peaceful"
        if metrics != history(peace):
            wrong.append("metrics differ from the undisturbed run's")
        for half in ("policy", "ema"):
            file = f"checkpoints/step-{STEPS}/{half}/model.safetensors"
            if not (here / file).exists() or (here / file).read_bytes() != (peace / file).read_bytes():
                wrong.append(f"{half} differs from the undisturbed run's")
    return wrong


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics by step, without what depends on the clock."""
    lines = run_dir / "metrics.jsonl"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return [{k: v for k, v in m.items() if not k.startswith(("time/", "buffer/blocked"))} for m in found]


def steps_done(run_dir: Path) -> int:
    """The last step that is in the metrics; the file may be in the middle of a write."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines() if (run_dir / "metrics.jsonl").exists() else []
    return len(lines)


def reached(run_dir: Path, step: int) -> bool:
    return steps_done(run_dir) >= step


class NextStep:
    """Whether a step was added since the last look; a new attempt first takes some away."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._seen = steps_done(run_dir)

    def __call__(self) -> bool:
        before, self._seen = self._seen, steps_done(self._run_dir)
        return self._seen > before


def by_fault(outcomes: list[Outcome]) -> list[list[str]]:
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes:
        for struck, waited in zip(outcome.struck, outcome.recovery_s, strict=False):
            seconds.setdefault(struck, []).append(waited)
    return [
        [fault, f"{len(waits)}", f"{sorted(waits)[len(waits) // 2]:.1f}", f"{max(waits):.1f}"]
        for fault, waits in sorted(seconds.items())
    ]


if __name__ == "__main__":
    main()
