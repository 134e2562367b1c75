"""The optimizer on the host: nanoseconds a parameter with ``learner.offload_optimizer``, and by torch's loop.

    python -m benchmarks.offload [--parameters 50000000] [--threads 1 2] [--rounds 3]

One flat shard in fp32, as a ZeRO rank has it. Both take turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.report import machine, save, table_of
from learner.config import OptimizerConfig
from learner.zero.optim import make_optimizer

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
LR = 1e-4
CASES: dict[str, tuple[Make, Make]] = {
    "adamw": (
        lambda shard: make_optimizer(OptimizerConfig(name="adamw", lr=LR), shard, fused=True),
        lambda shard: torch.optim.AdamW(shard, lr=LR, weight_decay=0.0, foreach=False),
    ),
    "rmsprop": (
        lambda shard: make_optimizer(OptimizerConfig(name="rmsprop", lr=LR), shard, fused=True),
        lambda shard: torch.optim.RMSprop(shard, lr=LR, foreach=False),
    ),
}


def nanoseconds(makes: tuple[Make, Make], parameters: int, rounds: int) -> list[float]:
    """A parameter and step, of each."""
    optimizers = []
    for make in makes:
        shard = torch.nn.Parameter(torch.full((parameters,), 0.01))
        shard.grad = torch.full((parameters,), 1e-3)
        optimizers.append(make([shard]))
        optimizers[-1].step()  # makes the states
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for optimizer, spent in zip(optimizers, seconds, strict=True):
            started = time.perf_counter()
            optimizer.step()
            spent.append(time.perf_counter() - started)
    return [1e9 * statistics.median(spent) / parameters for spent in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=50_000_000, help="of the shard")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results, rows = {}, []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, makes in CASES.items():
            ours, loop = nanoseconds(makes, options.parameters, options.rounds)
            results[f"{name}, {threads} threads"] = {"ours_ns": ours, "loop_ns": loop}
            rows.append([name, str(threads), f"{ours:.1f}", f"{loop:.1f}", f"{loop / ours:.1f}x"])
    print(f"\n{options.parameters:,} parameters, nanoseconds a parameter and step")
    print(table_of(["", "threads", "ours", "torch's loop", "ratio"], rows))
    save("offload", {"machine": machine(), "torch": torch.__version__, "parameters": options.parameters, **results})


if __name__ == "__main__":
    main()
