"""The EMA: seconds to update and to publish it as a share of a step, against a gather loop.

    python -m benchmarks.ema [--stages 0 2 3] [--shape 1024/256/64] [--pairs 2] [--steps 3]

Two DeepSpeed ranks over gloo, one thread each, 16.9 M Llama in fp32. The peer is what the paper's code and other
trainers do: a second whole model, and for each parameter a gather of it and of its EMA (under ZeRO-3; elsewhere
they are whole anyway), a lerp on the whole of it, and the partition written back. A publication is the learner's own
call with a weight sink that copies what it is handed into memory of its own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.learner import make_pairs
from benchmarks.ranks import RANKS, in_group, step
from benchmarks.report import machine, save, table_of
from learner.messages import Ack
from learner.rank import LearnerRank
from learner.zero.shards import gathered
from learner.zero.weights import WeightMetadata

DECAY = 0.5


class Sink:
    """Copies the weights, as a sink does that sends them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def stage(self, version: int, metadata: list[WeightMetadata], layers: Iterator[list[tuple[str, Tensor]]]) -> None:
        for name, tensor in chain.from_iterable(layers):
            self._kept.setdefault(name, torch.empty_like(tensor)).copy_(tensor)

    def send(self) -> list[Ack]:
        return []

    def retarget(self, actors: dict[str, Any]) -> None: ...

    def shutdown(self) -> None: ...


def measure(learner: LearnerRank, shape: str, count: int, steps: int) -> dict[str, Any]:
    """Medians in seconds on this rank."""
    pairs = make_pairs(shape, count)
    trained = [_timed(lambda: step(learner, pairs)) for _ in range(steps + 1)][1:]
    peer = _peer(learner)
    return {
        "step_s": statistics.median(trained),
        "update_s": _median_s(learner.ema.update, 7),
        "publish_s": _median_s(lambda: learner.stage(0), 3),
        "gather_loop_s": _median_s(lambda: _gather_loop(learner, peer), 3),
        "ema_mb": sum(v.numel() * v.element_size() for v in learner.ema.values) / 2**20,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in learner.module.parameters()),
    }


def _peer(learner: LearnerRank) -> nn.Module:
    """A second model, as the gather loop wants it: partitioned under ZeRO-3, whole elsewhere."""
    if learner.zero_stage < 3:
        return copy.deepcopy(learner.module)
    import deepspeed

    model = type(learner.module)(learner.module.config)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)
    return model


@torch.no_grad()
def _gather_loop(learner: LearnerRank, peer: nn.Module) -> None:
    for kept, new in zip(peer.parameters(), learner.module.parameters(), strict=True):
        if learner.zero_stage < 3:
            kept.lerp_(new, 1 - DECAY)
            continue
        with gathered([new], 3), _written_back(kept):
            if learner.rank == 0:
                kept.data.lerp_(new.data, 1 - DECAY)


def _written_back(parameter: nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def _timed(work: Callable[[], Any]) -> float:
    dist.barrier()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _median_s(work: Callable[[], Any], times: int) -> float:
    work()
    return statistics.median(_timed(work) for _ in range(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 2, 3], choices=range(4))
    parser.add_argument("--shape", default="1024/256/64", help="prompt/response/segment in tokens")
    parser.add_argument("--pairs", type=int, default=2, help=f"pairs per step, over {RANKS} ranks")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    options = parser.parse_args()
    results, rows = {}, []
    for stage in options.stages:
        ranks = in_group(
            measure,
            options.shape,
            options.pairs,
            options.steps,
            make_sink=Sink,
            sections={"learner": {"zero_stage": stage}},
        )
        slowest = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        results[f"zero {stage}"] = slowest
        update, publish, loop = (slowest[f"{name}_s"] for name in ("update", "publish", "gather_loop"))
        rows.append(
            [
                f"ZeRO {stage}",
                f"{slowest['step_s']:.2f}",
                *(f"{1000 * s:.1f} ({s / slowest['step_s']:.2%})" for s in (update, loop)),
                f"{loop / update:.1f}x",
                f"{1000 * publish:.0f} ({publish / slowest['step_s']:.1%})",
                f"{slowest['ema_mb']:.0f}",
            ]
        )
    head = [
        "",
        "step s",
        "update ms (of step)",
        "gather loop ms (of step)",
        "slower by",
        "publish ms (of step)",
        "EMA MB a rank",
    ]
    print(f"\nprompt/response/segment {options.shape}, {options.pairs} pairs a step, {RANKS} ranks")
    print(table_of(head, rows))
    settings = {"shape": options.shape, "pairs": options.pairs, "steps": options.steps, "ranks": RANKS}
    save("ema", {"machine": machine(), **settings, "torch": torch.__version__, "stages": results})


if __name__ == "__main__":
    main()
