"""Chaos: runs of the command line that are hit at random moments, each compared with the same run left in peace.

    python -m benchmarks.chaos [--runs 4] [--faults 6] [--seed 0] [--steps 60] [--bounds 0 2] [--nodes 0]
                               [--only "kill rank" …]
    python -m benchmarks.chaos --bounds 0 --only "kill driver" [--ranks]     what resumes give
    python -m benchmarks.chaos --bounds 0 --nodes 2 --gone                   a run that goes on with fewer

Every run is ``sapo train``: tiny model, two ranks, two actors, two shards, a checkpoint every 4 steps. Faults
come one after the other, each a random moment after the run has gone on since the one before. ``--nodes`` lets the run
have a cluster of so many raylets on this machine, one of which may be killed; another one joins then. A driver that is
killed or ended by SIGTERM is started again, with other numbers of actors and shards. Afterwards: the run has ended by
itself with status 0, its steps are without gap or double, every plan index has one outcome, staleness is within the
bound, no process, shared memory, folder or lock of it is left, and in lockstep its metrics and weights equal those of
the undisturbed run bit for bit. Exits with 1 otherwise.

With ``--ranks`` a driver is started again with another number of ranks too. With ``--gone`` nodes have one core each,
and one of them is killed in each run and does not come back. Both change the rounding, so weights are not compared bit
for bit: how far they are apart stands in the results.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos.audit import distance, events, findings
from benchmarks.chaos.faults import ALL, OF_CLUSTERS
from benchmarks.chaos.nodes import CPUS, LocalCluster
from benchmarks.chaos.victim import Outcome, Victim
from benchmarks.report import machine, save, table_of

EVERY, BATCH = 4, 8
STALL_S = 20.0
"""recovery.stall_s: a tiny model's step takes milliseconds."""
FEWER_S, GONE_S = 60.0, 5.0
"""recovery.fewer_after_s, where a node joins after a while and where none does."""
CHANGES = {"generation.actors": [1, 2, 3], "buffer.shards": [1, 2, 4]}
"""What a driver is started again with."""
PEACEFUL = "peaceful"


def main() -> None:
    arguments = _arguments()
    chance = random.Random(arguments.seed)
    choice = [*ALL, *(OF_CLUSTERS if arguments.nodes else [])]
    choice = [fault for fault in choice if not arguments.only or str(fault) in arguments.only]
    if arguments.gone:
        choice, arguments.faults = OF_CLUSTERS, 1
    changes = CHANGES | ({"learner.ranks": [1, 2]} if arguments.ranks else {})
    rounded = arguments.ranks or arguments.gone
    outcomes: list[Outcome] = []
    kept = (
        nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp")
    )
    with kept as name, _cluster(arguments.nodes, arguments.gone) as cluster:
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        peaceful = folder / "runs" / PEACEFUL
        if not (peaceful / "checkpoints" / f"step-{arguments.steps}").exists():
            write_task(folder)
            undisturbed = Victim(
                folder, PEACEFUL, settings(folder, PEACEFUL, 0, arguments.steps), None, chance, {}
            ).hit_by([])
            assert not undisturbed.wrong, undisturbed.wrong
        for number in range(arguments.runs):
            bound = arguments.bounds[number % len(arguments.bounds)]
            called = f"run-{arguments.seed}-{number}"
            values = settings(folder, called, bound, arguments.steps)
            values["recovery"]["fewer_after_s"] = GONE_S if arguments.gone else FEWER_S
            values["generation"]["actors"] = arguments.actors
            victim = Victim(folder, called, values, cluster, chance, changes, rejoin=not arguments.gone)
            if cluster:
                cluster.fill()
            outcome = victim.hit_by(chance.choices(choice, k=arguments.faults))
            outcome.wrong += findings(
                victim.folder, bound, arguments.steps, BATCH, None if bound or rounded else peaceful
            )
            if arguments.gone and not events(victim.folder, "fewer"):
                outcome.wrong.append("it did not go on with fewer")
            if rounded and not bound and not outcome.wrong:
                outcome.apart = distance(victim.folder, peaceful, arguments.steps)
            outcomes.append(outcome)
            print(f"run {number}, staleness {bound}: {outcome}", flush=True)
            save("chaos", {"machine": machine(), "runs": [asdict(outcome) for outcome in outcomes]})
    print(table_of(["fault", "struck", "median s to the next step", "longest"], by_fault(outcomes)))
    exits = [seconds for outcome in outcomes for seconds in outcome.exit_s]
    if exits:
        print(f"SIGTERM to exit: {len(exits)} times, longest {max(exits):.1f} s")
    held = sum(not outcome.wrong for outcome in outcomes)
    print(f"{held} of {len(outcomes)} runs are as they should be")
    sys.exit(held < len(outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=6, help="per run")
    parser.add_argument(
        "--steps", type=int, default=60, help="per run; each fault takes 1 to 6 of them, and their repetition"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", type=int, nargs="+", default=[0, 2], help="weights.max_staleness, in turn")
    parser.add_argument("--nodes", type=int, default=0, help="raylets of the cluster; 0: the run starts Ray itself")
    parser.add_argument("--only", nargs="+", help="these faults alone")
    parser.add_argument("--actors", type=int, default=2, help="with 1, no step is made until a dead one is replaced")
    parser.add_argument("--ranks", action="store_true", help="resumes with other numbers of ranks too")
    parser.add_argument("--gone", action="store_true", help="one node is killed in each run, and none joins")
    parser.add_argument("--folder", type=Path, help="keep everything here, and use the undisturbed run that is there")
    return parser.parse_args()


def _cluster(nodes: int, gone: bool) -> AbstractContextManager[LocalCluster | None]:
    """``gone``: nodes have one core, of which ranks and actors of the run take two."""
    return LocalCluster(nodes, 1 if gone else CPUS) if nodes else nullcontext()


def write_task(folder: Path) -> None:
    """The demo's data, and a random model with the demo's tokenizer."""
    from benchmarks.models import with_random_weights  # torch takes its time, and is needed once for each folder
    from demo.model import write_model
    from demo.task import write_data

    write_data(folder, 500, 0)
    write_model(folder / "model", hidden=64, layers=2)
    with_random_weights(folder / "model")


def settings(folder: Path, name: str, bound: int, steps: int) -> dict[str, Any]:
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
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "batch_size": BATCH, "steps": steps, "tokens_per_batch": 512},
        "weights": {"max_staleness": bound, "parity_every": 0, "timeout_s": STALL_S},
        "checkpoint": {"every": EVERY, "keep": 3, "on_error": "continue"},
        "recovery": {
            "restarts": 1000,
            "replacements": 1000,
            "backoff_s": 0.0,  # it would be doubled with each fault
            "stall_s": STALL_S,
            "auto_resume": True,
            "fewer_after_s": FEWER_S,
        },
        "cluster": {"strategy": "SPREAD"},
        "logging": {"tensorboard": False, "record_pairs": True},
    }


def by_fault(outcomes: list[Outcome]) -> list[list[str]]:
    seconds: dict[str, list[float | None]] = {}
    for outcome in outcomes:
        for hit in outcome.hits:
            seconds.setdefault(hit.fault, []).append(hit.recovery_s)
    rows = []
    for fault, waits in sorted(seconds.items()):
        known = [wait for wait in waits if wait is not None]
        rows.append([fault, f"{len(waits)}", *(f"{f(known):.1f}" if known else "" for f in (statistics.median, max))])
    return rows


if __name__ == "__main__":
    main()
