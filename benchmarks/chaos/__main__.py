"""Chaos: runs of the command line that are hit at random moments, each compared with the same run left in peace.

    python -m benchmarks.chaos [--runs 4] [--faults 6] [--seed 0] [--bounds 0 2] [--nodes 0] [--only "kill rank" …]

Every run is ``sapo train``: tiny model, two ranks, two actors, two shards, a checkpoint every 4 of 60 steps. Faults
come one after the other, each a random moment after the run has gone on since the one before. ``--nodes`` lets the run
have a cluster of so many raylets on this machine, one of which may be killed; another one joins then. A driver that is
killed or ended by SIGTERM is started again, with other numbers of actors and shards. Afterwards: the run has ended by
itself with status 0, its steps are without gap or double, every plan index has one outcome, staleness is within the
bound, no process, shared memory, folder or lock of it is left, and in lockstep its metrics and weights equal those of
the undisturbed run bit for bit. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.chaos.audit import findings
from benchmarks.chaos.faults import ALL, OF_CLUSTERS
from benchmarks.chaos.nodes import LocalCluster
from benchmarks.chaos.victim import Outcome, Victim
from benchmarks.models import with_random_weights
from benchmarks.report import machine, save, table_of
from demo.model import write_model
from demo.task import write_data

STEPS, EVERY, BATCH = 60, 4, 8
STALL_S = 20.0
"""recovery.stall_s: a tiny model's step takes milliseconds."""
PEACEFUL = "peaceful"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=6, help="per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", type=int, nargs="+", default=[0, 2], help="weights.max_staleness, in turn")
    parser.add_argument("--nodes", type=int, default=0, help="raylets of the cluster; 0: the run starts Ray itself")
    parser.add_argument("--only", nargs="+", help="these faults alone")
    parser.add_argument("--folder", type=Path, help="keep everything here, and use the undisturbed run that is there")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    choice = [*ALL, *(OF_CLUSTERS if arguments.nodes else [])]
    choice = [fault for fault in choice if not arguments.only or str(fault) in arguments.only]
    outcomes: list[Outcome] = []
    kept = (
        nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp")
    )
    with kept as name, LocalCluster(arguments.nodes) if arguments.nodes else nullcontext() as cluster:
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        peaceful = folder / "runs" / PEACEFUL
        if not (peaceful / "checkpoints" / f"step-{STEPS}").exists():
            write_task(folder)
            undisturbed = Victim(folder, PEACEFUL, settings(folder, PEACEFUL, 0), None, chance).hit_by([])
            assert not undisturbed.wrong, undisturbed.wrong
        for number in range(arguments.runs):
            bound = arguments.bounds[number % len(arguments.bounds)]
            called = f"run-{arguments.seed}-{number}"
            victim = Victim(folder, called, settings(folder, called, bound), cluster, chance)
            outcome = victim.hit_by(chance.choices(choice, k=arguments.faults))
            outcome.wrong += findings(victim.folder, bound, STEPS, BATCH, None if bound else peaceful)
            outcomes.append(outcome)
            print(f"run {number}, staleness {bound}: {outcome}", flush=True)
    print(table_of(["fault", "struck", "median s to the next step", "longest"], by_fault(outcomes)))
    exits = [seconds for outcome in outcomes for seconds in outcome.exit_s]
    if exits:
        print(f"SIGTERM to exit: {len(exits)} times, longest {max(exits):.1f} s")
    held = sum(not outcome.wrong for outcome in outcomes)
    print(f"{held} of {len(outcomes)} runs are as they should be")
    save("chaos", {"machine": machine(), "runs": [vars(outcome) for outcome in outcomes]})
    sys.exit(held < len(outcomes))


def write_task(folder: Path) -> None:
    """The demo's data, and a random model with the demo's tokenizer."""
    write_data(folder, 500, 0)
    write_model(folder / "model", hidden=64, layers=2)
    with_random_weights(folder / "model")


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
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "batch_size": BATCH, "steps": STEPS, "tokens_per_batch": 512},
        "weights": {"max_staleness": bound, "parity_every": 0, "timeout_s": STALL_S},
        "checkpoint": {"every": EVERY, "keep": 3, "on_error": "continue"},
        "recovery": {
            "restarts": 1000,
            "replacements": 1000,
            "backoff_s": 0.0,  # it would be doubled with each fault
            "stall_s": STALL_S,
            "auto_resume": True,
            "fewer_after_s": 60.0,
        },
        "cluster": {"strategy": "SPREAD"},
        "logging": {"tensorboard": False, "record_pairs": True},
    }


def by_fault(outcomes: list[Outcome]) -> list[list[str]]:
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes:
        for hit in outcome.hits:
            seconds.setdefault(hit.fault, []).append(hit.recovery_s)
    return [
        [fault, f"{len(waits)}", f"{sorted(waits)[len(waits) // 2]:.1f}", f"{max(waits):.1f}"]
        for fault, waits in sorted(seconds.items())
    ]


if __name__ == "__main__":
    main()
