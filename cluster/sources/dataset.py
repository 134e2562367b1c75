"""Rows of the dataset in a seeded order of their own every epoch: supervised responses, or offline pairs."""

from __future__ import annotations

from actors.plan import Plan
from actors.token_table import Row, TokenTable
from cluster.sources.base import Batch, FixedSource
from contracts.pair import PreferencePair, offline_pair, supervised


class DatasetSource(FixedSource):
    """Batches of rows (method ``offline``)."""

    def __init__(self, table: TokenTable, *, seed: int, batch_size: int) -> None:
        super().__init__()
        self._table, self._batch = table, batch_size
        self._plan = Plan(seed, table.response_lengths, None, 1, table.shares)

    def next(self, step: int) -> Batch:
        first = step * self._batch
        rows = [self._plan.item(i).row for i in range(first, first + self._batch)]
        pairs = [self._pair(number, self._table[number]) for number in rows]
        return Batch(pairs, metrics={"epoch": (first + self._batch) / len(self._table)})

    def _pair(self, number: int, row: Row) -> PreferencePair:
        assert row.rejected is not None
        return self._with_score(offline_pair(number, row.prompt, row.response, row.rejected))


class SupervisedSource(DatasetSource):
    """The same rows with their good half alone (method ``sft``)."""

    def samples(self, batch: Batch) -> list[PreferencePair]:
        return []

    def _pair(self, number: int, row: Row) -> PreferencePair:
        return supervised(number, row.prompt, row.response)
