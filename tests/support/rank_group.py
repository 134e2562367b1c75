"""What the tests of a DeepSpeed group share: pairs, config sections, and processes that run a rank each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from contracts.pair import PreferencePair
from contracts.ports import free_port
from learner.config import EmaConfig, LearnerConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, ReferenceConfig
from learner.messages import Ack, RankSpec, StepReport
from learner.zero.weights import WeightMetadata

STEPS, BATCH = 20, 6
DECAY, LR, BETA = 0.5, 1e-3, 0.1


def make_pairs(seed: int, count: int = BATCH) -> list[PreferencePair]:
    draw = np.random.default_rng(seed)

    def tokens(n: int) -> np.ndarray:
        return draw.integers(3, 128, n).astype(np.int32)

    pairs = []
    for index in range(count):
        a, b, c = draw.integers(0, 12, 3)
        chosen = tokens(a + b + c + 1)
        replacement = tokens(int(draw.integers(1, 12)))
        pairs.append(PreferencePair(tokens(8), chosen, int(a), int(a + b), replacement, bool(index % 2), index=index))
    return pairs


def sections(folder: str, **changes: Any) -> dict[str, Any]:
    """Fields of ``RankSpec``; ``changes`` by section."""
    parts: dict[str, Any] = {
        "model": ModelConfig(path=folder, dtype="float32"),
        "objective": ObjectiveConfig(name="dpo", beta=BETA),
        "reference": ReferenceConfig(mode="initial"),
        "optimizer": OptimizerConfig(lr=LR, schedule="constant", warmup_steps=0, max_grad_norm=1.0),
        "learner": LearnerConfig(ranks=2, batch_size=BATCH, tokens_per_batch=1024, self_check=True),
        "ema": EmaConfig(decay=DECAY),
        "max_length": 256,
        "total_steps": STEPS,
        "seed": 0,
    }
    for name, change in changes.items():
        parts[name] = parts[name].model_copy(update=change)
    return parts


# What a rank imports takes longer than what the tests have it do: a server imports it once and forks the ranks.
mp.set_forkserver_preload(
    [
        "pytest",
        "transformers.models.llama.modeling_llama",
        "peft",
        "learner.rank",
        "deepspeed.runtime.zero.stage3",
        "deepspeed.runtime.zero.muon.muon_optimizer",
    ]
)


def in_group(world: int, body: Any, *arguments: Any) -> None:
    """Run ``body(rank, world, port, *arguments)`` in ``world`` fresh processes."""
    port = free_port("127.0.0.1")
    # DeepSpeed looks for its device when it is imported, in the server.
    with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"):
        mp.start_processes(body, (world, port, *arguments), nprocs=world, start_method="forkserver")


def start(rank: int, world: int, port: int, parts: dict[str, Any]) -> Any:
    """A rank that has been set up; rank 0's ``sink`` is a ``Recorder``."""
    from learner.rank import LearnerRank

    learner = LearnerRank(rank, world, RankSpec(**parts), make_sink=lambda: Recorder(learner.module))
    learner.rendezvous("127.0.0.1", port)
    learner.load_weights()
    learner.setup()
    return learner


def share(pairs: list[PreferencePair], rank: int, world: int) -> list[PreferencePair]:
    from learner.model.packing import split_by_cost

    return [pairs[i] for i in split_by_cost(pairs, world)[rank]]


def steps(learner: Any, first: int, last: int) -> list[dict[str, float]]:
    """Metrics of the steps [first, last), each on pairs of its own."""
    history = []
    for step in range(first, last):
        pairs = make_pairs(step)
        report = learner.step(share(pairs, learner.rank, learner.world_size), len(pairs))
        check_margins(report, len(pairs))
        history.append(report.metrics)
    return history


def check_margins(report: StepReport, global_pairs: int) -> None:
    """The ranks' margins of single pairs have the mean that the metrics tell."""
    if (mean := report.metrics.get("rewards/margins")) is not None and math.isfinite(mean):
        total = torch.tensor(report.margins, dtype=torch.float64).sum()
        dist.all_reduce(total)
        assert math.isclose(float(total) / global_pairs, mean, rel_tol=1e-5, abs_tol=1e-6)


class Recorder:
    """A weight sink that keeps what it is handed, and how many elements ZeRO-3 had gathered at most meanwhile."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self.seen: dict[str, Any] = {}

    def stage(
        self, version: int, metadata: list[WeightMetadata], layers: Iterator[list[tuple[str, torch.Tensor]]]
    ) -> None:
        kept, most = {}, 0
        for name, tensor in chain.from_iterable(layers):
            kept[name] = tensor.detach().clone()
            # Under ZeRO-3 a parameter has elements only while it is gathered.
            whole = [p for p in self._module.parameters() if hasattr(p, "ds_tensor")]
            most = max(most, sum(p.numel() for p in whole))
        self.seen = {"version": version, "metadata": metadata, "weights": kept, "most_gathered": most}

    def send(self) -> list[Ack]:
        return []

    def retarget(self, actors: dict[str, Any]) -> None: ...

    def shutdown(self) -> None: ...


def save(learner: Any, folder: Path | str) -> None:
    """A whole checkpoint. All ranks together."""
    learner.save(str(folder))
    learner.written()
    dist.barrier()


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= tolerance, name


def unpacked_logps(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """[response tokens]: by one forward of transformers, nothing shared."""
    ids = torch.from_numpy(np.concatenate((prompt, response)).astype(np.int64))[None]
    logps = model(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logps[len(prompt) - 1 :]
