"""A resumed group goes on bit for bit; a checkpoint of another layout is refused in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contracts.errors import UserError
from learner.config import LoraConfig, OptimizerConfig
from learner.zero import checkpoint
from support.rank_group import close, in_group, sections, start, steps, weights


def run(rank: int, world: int, port: int, parts: dict[str, Any], out: str, interrupted: bool) -> None:
    learner = start(rank, world, port, parts)
    if interrupted:
        learner.load(f"{out}/saved")
        assert learner.steps == 3
    else:
        steps(learner, 0, 3)
        learner.save(f"{out}/saved")
    name = "resumed" if interrupted else "straight"
    history = steps(learner, 3, 6)
    learner.export(f"{out}/{name}")
    if rank == 0:
        kept = [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in history]
        torch.save(kept, f"{out}/{name}/history.pt")
    learner.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"learner": {"zero_stage": 0}}, "ema"),
        ({"learner": {"zero_stage": 2, "offload_optimizer": True}, "model": {"dtype": "bfloat16"}}, "policy"),
        # Dropout makes the generators part of the result.
        ({"learner": {"zero_stage": 3}, "model": {"lora": LoraConfig(rank=4, dropout=0.2)}}, "initial"),
    ],
    ids=["zero0", "zero2-bf16-offload", "zero3-lora"],
)
def test_resume_gives_the_same_weights_and_metrics_bit_for_bit(changes, mode, tiny_llama, tmp_path):
    parts = sections(
        tiny_llama,
        reference={"mode": mode, "interval": 2},
        optimizer={"schedule": "cosine", "warmup_steps": 2},
        **changes,
    )
    in_group(2, run, parts, str(tmp_path), False)
    in_group(2, run, parts, str(tmp_path), True)
    for which in ("policy", "ema"):
        close(*(weights(tmp_path / name / which) for name in ("straight", "resumed")), 0.0)
    straight, resumed = (torch.load(tmp_path / name / "history.pt") for name in ("straight", "resumed"))
    assert straight == resumed


def rank_of(world: int, stage: int, optimizer: str = "adamw") -> Any:
    """As much of a ``LearnerRank`` as the layout needs."""
    return SimpleNamespace(
        rank=0,
        world_size=world,
        stage_number=stage,
        optimizer_config=OptimizerConfig(name=optimizer),
        shards=SimpleNamespace(masters=[torch.zeros(10)]),
    )


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (rank_of(4, 2), "saved with learner.ranks 2; this run has learner.ranks 4"),
        (rank_of(2, 3), "saved with learner.zero_stage 2; this run has learner.zero_stage 3"),
        (rank_of(2, 2, "rmsprop"), "saved with optimizer.name adamw; this run has optimizer.name rmsprop"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_in_one_line(now, message, tmp_path):
    torch.save({"layout": checkpoint._layout(rank_of(2, 2))}, tmp_path / "rank-0.pt")
    with pytest.raises(UserError) as refused:
        checkpoint.load(tmp_path, now)
    assert message in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_rank_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"rank-0\.pt: missing"):
        checkpoint.load(Path(tmp_path), rank_of(2, 2))
