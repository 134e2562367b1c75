"""A DeepSpeed group in processes of its own, for benchmarks of what a rank does."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch.multiprocessing as mp

from benchmarks.learner import make_model, status_mb
from contracts.pair import PreferencePair
from contracts.ports import free_port
from learner.config import EmaConfig, LearnerConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, ReferenceConfig
from learner.messages import RankSpec, StepReport
from learner.model.packing import split_by_cost
from learner.rank import LearnerRank
from learner.zero.weight_sink import WeightSink

RANKS = 2

mp.set_forkserver_preload(["benchmarks.ranks", "peft", "deepspeed.runtime.zero.muon.muon_optimizer"])


def in_group(
    body: Callable[..., dict[str, Any]],
    *arguments: Any,
    make_sink: Callable[[], WeightSink] | None = None,
    sections: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """What ``body(learner, *arguments)`` returned on each rank of a fresh group that trains benchmarks.learner's model,
    and ``peak_mb``: what the process held at most beyond its libraries.

    Args:
        make_sink: as ``LearnerRank`` takes it.
        sections: changes to the learner's configuration, by section.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        make_model().config.save_pretrained(folder)
        port = free_port("127.0.0.1")
        with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"):
            mp.start_processes(
                _rank, (port, folder, sections, make_sink, body, arguments), nprocs=RANKS, start_method="forkserver"
            )
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]


def _rank(
    rank: int,
    port: int,
    folder: str,
    sections: dict[str, dict[str, Any]],
    make_sink: Callable[[], WeightSink] | None,
    body: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    parts: dict[str, Any] = {
        "model": ModelConfig(path=folder, dtype="float32", from_scratch=True),
        "objective": ObjectiveConfig(name="dpo"),
        "reference": ReferenceConfig(mode="initial"),
        "optimizer": OptimizerConfig(schedule="constant", warmup_steps=0),
        "ema": EmaConfig(),
        "learner": LearnerConfig(ranks=RANKS, tokens_per_batch=1 << 20, self_check=False),
    }
    changed = {name: part.model_copy(update=sections.get(name, {})) for name, part in parts.items()}
    before = status_mb("VmRSS")
    spec = RankSpec(**changed, max_length=8192, total_steps=1000, seed=0)
    learner = LearnerRank(rank, RANKS, spec, make_sink)
    learner.rendezvous("127.0.0.1", port)
    learner.load_weights()
    learner.setup()
    result = body(learner, *arguments) | {"peak_mb": status_mb("VmHWM") - before}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    learner.shutdown()


def step(learner: LearnerRank, pairs: Sequence[PreferencePair]) -> StepReport:
    """One step of the group on ``pairs``."""
    mine = [pairs[i] for i in split_by_cost(pairs, RANKS)[learner.rank]]
    return learner.step(mine, len(pairs))
