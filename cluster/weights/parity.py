"""Log-probability parity check: the engines' log-probabilities of a few fixed rows against the learner's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.token_table import TokenTable
from cluster.config.sections import WeightsConfig
from cluster.workers.actor_pool import ActorPool
from cluster.workers.ray_calls import WorkerFailure

ROWS = 4
TOKENS = 256
"""Of each row at most."""

Scores = Sequence[NDArray[np.float32]]
"""Log-probabilities in nats, float32 [tokens - 1] per sequence."""


class Scorer(Protocol):
    """The learner's side."""

    def score_ema(self, sequences: list[list[int]]) -> Scores: ...


class ParityCheck:
    """Compares learner and engines after a publication, when both sides speak of the same weights."""

    def __init__(self, config: WeightsConfig, table: TokenTable, learner: Scorer, pool: ActorPool) -> None:
        self._config, self._learner, self._pool = config, learner, pool
        self._sequences: list[list[int]] = [
            np.concatenate((row.prompt, row.response))[:TOKENS].tolist()
            for row in (table[i] for i in range(min(ROWS, len(table))))
        ]

    def due(self, step: int) -> bool:
        """Whether the publication of ``step`` is to be checked."""
        every = self._config.canary_every
        return bool(every) and step // self._config.publish_every % every == 0

    def check(self, version: int) -> float:
        """Largest difference in nats over all actors that hold ``version``; an actor that is off is replaced."""
        self._pool.wait_for_version(version)
        ours = self._learner.score_ema(self._sequences)
        worst = 0.0
        members = [m for m in self._pool.running() if m.version == version and m.worker]
        calls = [m.worker.call("score", self._sequences) for m in members if m.worker]
        for member, call in zip(members, calls, strict=True):
            try:
                theirs = self._pool.answer(call)
            except WorkerFailure as failure:
                if not failure.died:
                    raise
                continue  # its death is handled where its ``run`` is awaited
            off = largest_difference(ours, theirs)
            worst = max(worst, off)
            if off > self._config.canary_tolerance:
                self._pool.replace(member, f"its log-probabilities are {off:.3g} nats off the learner's")
        return worst


def largest_difference(ours: Scores, theirs: Scores) -> float:
    """In nats, over all tokens."""
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
