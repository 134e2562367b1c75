"""How long the sequences of a run are, and what one pair costs in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig


@dataclass(frozen=True)
class Workload:
    """Means over the rows of a dataset, in tokens."""

    rows: int | None
    """None: not known."""
    prompt: float
    response: float
    segment: float
    """Tokens that are generated for a pair: B' is at most as long as B."""
    prefix: float
    """A: what stands before the cut."""
    suffix: float
    """C: what stands after the segment."""
    assumed: bool = False
    """Whether lengths were assumed because the data could not be read."""
    spread: float = 0.0
    """Standard deviation of a row's tokens, prompt and response, over the rows."""

    @property
    def pair(self) -> float:
        """Tokens of a prefix-shared forward of one pair: x A, B C, B' C."""
        return self.prompt + self.response + self.segment + self.suffix

    @property
    def row(self) -> float:
        """Tokens of a supervised row."""
        return self.prompt + self.response


def of_table(table: TokenTable, segment_length: int | None) -> Workload:
    """Of data that was read."""
    prompts = np.diff(table.prompts.offsets).astype(np.float64)
    responses = np.diff(table.responses.offsets).astype(np.float64)
    segments = responses if segment_length is None else np.minimum(responses, segment_length)
    # The cut is uniform: as much before the segment as after it.
    around = float((responses - segments).mean() / 2)
    means = float(prompts.mean()), float(responses.mean()), float(segments.mean())
    return Workload(len(table), *means, around, around, spread=float((prompts + responses).std()))


def assumed(config: RunConfig, prompt: float, response: float, rows: int | None = None) -> Workload:
    """Of data that is not there: every row has these lengths."""
    segment = min(response, config.generation.segment_length or response)
    around = (response - segment) / 2
    return Workload(rows, prompt, response, segment, around, around, assumed=True)


def trained_tokens(config: RunConfig, workload: Workload) -> float:
    """Tokens that the learner computes per pair, or per row of method ``sft``."""
    if config.method == "sft":
        return workload.row
    if config.learner.forward in ("packed", "padded"):
        return 2 * workload.row
    return workload.pair


def fullest_batch_tokens(config: RunConfig, workload: Workload) -> float:
    """Tokens of a batch three standard deviations over the mean: one in 700 is larger, and a run has many."""
    pairs, each = config.learner.batch_size, trained_tokens(config, workload)
    return pairs * each + 3.0 * sqrt(pairs) * workload.spread * each / max(workload.row, 1.0)
