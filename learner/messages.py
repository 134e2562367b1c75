"""What crosses the border between a learner rank and its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from contracts.pair import ReferenceScore
from learner.config import EmaConfig, LearnerConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, ReferenceConfig


@dataclass(frozen=True)
class RankSpec:
    """What a rank is made from; the same for all ranks of a group."""

    model: ModelConfig
    objective: ObjectiveConfig
    reference: ReferenceConfig
    optimizer: OptimizerConfig
    learner: LearnerConfig
    ema: EmaConfig
    max_length: int
    """Tokens of the longest sequence, prompt and response."""
    total_steps: int
    """Optimizer steps of the run, for the learning-rate schedule."""
    seed: int
    deterministic: bool = False
    """On GPU: kernels that give the same numbers every time."""
    ends: tuple[int, ...] = ()
    """Token ids that end a response, for the exported generation_config; () leaves what the starting model has."""
    vocabulary: int = 0
    """Rows that the embeddings must have, where tokens were added; 0 leaves them as they are."""
    adapters_alone: bool = False
    """Engines get the LoRA adapters, not the weights that they are merged into."""


class Address(NamedTuple):
    """Where the ranks meet."""

    host: str
    port: int


SKIPPED = "learner/skipped"
"""Metric: 1 where the gradient was not finite and no weight was changed, else 0."""


@dataclass(frozen=True)
class StepReport:
    """One rank's view of a step."""

    metrics: dict[str, float]
    """Means over the global batch, the same on every rank; times in seconds are the rank's own."""
    reference_scores: list[ReferenceScore | None]
    """Aligned with this rank's pairs; None where the cached ones served."""
    margins: list[float | None]
    """Reward margins, aligned with this rank's pairs; None where the objective has none."""


@dataclass(frozen=True)
class Ack:
    """An actor's answer to a publication."""

    actor: str
    version: int
    seconds: float
    error: str = ""
    """Why the version did not arrive, after a retry on a rebuilt group; empty when it did."""
