"""Actors and a loss that are slow at random moments, for benchmarks/stress.py. Each notes what it did and when."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.generator import GenerationActor
from actors.messages import Completion
from actors.plan import PlanItem
from actors.token_table import Row
from buffer.messages import Outcome
from contracts.pair import PreferencePair
from learner.loss.objectives import Scores, orpo

LOG_FOLDER = "SAPO_STRESS_LOG"
"""Environment variable: where processes note, a line each, what they did."""

_draw = random.Random()


def _note(**event: Any) -> None:
    with open(Path(os.environ[LOG_FOLDER]) / f"{os.getpid()}.jsonl", "a") as log:
        log.write(json.dumps({"time": time.time(), **event}) + "\n")


def _pause() -> float:
    """Seconds: mostly short, now and then several steps long."""
    return _draw.expovariate(1 / 1.5) if _draw.random() < 0.1 else _draw.expovariate(1 / 0.03)


class SlowActor(GenerationActor):
    """Waits before and after a segment, and before it takes and after it has taken new weights."""

    async def _work(self, index: int) -> None:
        await asyncio.sleep(_pause())
        await super()._work(index)

    def _spliced(
        self, row: Row, item: PlanItem, completion: Completion | None
    ) -> tuple[Outcome, PreferencePair | None]:
        if completion is not None:
            _note(version=int(completion.versions.max()))
        return super()._spliced(row, item, completion)

    async def start_weight_update(self) -> None:
        await asyncio.sleep(_pause())
        await super().start_weight_update()

    async def finish_weight_update(self, version: int, digests: dict[str, int]) -> None:
        await super().finish_weight_update(version, digests)
        await asyncio.sleep(_pause())


def slow_orpo(scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
    """ORPO on a rank that stalls; called once a step, as long as a rank's share is one micro-batch."""
    _note(step=True)
    time.sleep(_pause())
    return orpo(scores, weight=0.05)
