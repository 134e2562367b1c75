"""Rows that are never trained on: loss, and on pairs the margin too, every so many steps."""

from __future__ import annotations

import time

from actors.token_table import TokenTable
from cluster.config.sections import DataConfig
from cluster.run.callbacks import is_due
from cluster.sources.base import Metrics
from cluster.workers.learner_group import LearnerGroup
from contracts.pair import offline_pair, supervised


class HeldOut:
    """Evaluates the policy on the first held-out rows; the same ones in every attempt of a run."""

    def __init__(self, table: TokenTable | None, data: DataConfig, group: LearnerGroup, total_steps: int) -> None:
        self._group, self._every, self._last = group, data.held_out_every, total_steps
        self._chosen_only = table is None or table.rejected is None
        rows = [table[i] for i in range(min(len(table), data.held_out_rows))] if table is not None else []
        self._pairs = [
            supervised(i, row.prompt, row.response)
            if row.rejected is None
            else offline_pair(i, row.prompt, row.response, row.rejected)
            for i, row in enumerate(rows)
        ]

    def metrics(self, step: int) -> Metrics:
        """``eval/…`` after ``step`` steps; nothing where no evaluation is due or no row is held out."""
        if not self._pairs or not (is_due(step, self._every) or step == self._last):
            return {}
        started = time.monotonic()
        found = self._group.evaluate(self._pairs, chosen_only=self._chosen_only)
        named = {f"eval/{name}": value for name, value in found.items() if name != "tokens/trained"}
        return named | {"time/eval_s": time.monotonic() - started}
