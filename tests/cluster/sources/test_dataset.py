"""Batches of a dataset: every row once an epoch, in an order of the epoch's own."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np

from actors.token_table import TokenTable
from cluster.sources.dataset import DatasetSource, SupervisedSource
from contracts.pair import ReferenceScore

ROWS = 12


def table(*, pairs: bool = False) -> TokenTable:
    """Row i has prompt [i] and response [100 + i, 7, 2]; its rejected response shares the first token."""
    rows = [[[i], [100 + i, 7, 2]] + ([[100 + i, 8, 9, 2]] if pairs else []) for i in range(ROWS)]
    return TokenTable.from_rows(rows)


def drawn(source: DatasetSource, steps: range) -> list[list[int]]:
    """Row numbers by batch."""
    return [[pair.row for pair in source.next(step).pairs] for step in steps]


def test_every_row_comes_once_an_epoch_in_another_order_each_time() -> None:
    batches = drawn(SupervisedSource(table(), seed=0, batch_size=4), range(9))
    epochs = [list(chain.from_iterable(batches[i : i + 3])) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_may_straddle_epochs_without_losing_or_repeating_rows() -> None:
    flat = list(chain.from_iterable(drawn(SupervisedSource(table(), seed=0, batch_size=5), range(12))))
    assert Counter(flat) == dict.fromkeys(range(ROWS), 5)
    assert sorted(flat[:ROWS]) == list(range(ROWS))


def test_the_order_is_a_function_of_seed_and_step() -> None:
    first, again = SupervisedSource(table(), seed=0, batch_size=4), SupervisedSource(table(), seed=0, batch_size=4)
    assert drawn(first, range(6)) == drawn(again, range(6))
    assert drawn(again, range(3, 6)) == drawn(first, range(3, 6)), "a resumed run asks for later steps first"
    assert drawn(first, range(6)) != drawn(SupervisedSource(table(), seed=1, batch_size=4), range(6))


def test_the_epoch_is_reported_as_a_fraction() -> None:
    source = SupervisedSource(table(), seed=0, batch_size=4)
    assert [source.next(step).metrics["epoch"] for step in (0, 2, 3)] == [4 / 12, 1.0, 16 / 12]


def test_supervised_rows_have_a_chosen_half_alone() -> None:
    for pair in SupervisedSource(table(), seed=0, batch_size=4).next(0).pairs:
        assert pair.prompt.tolist() == [pair.row]
        assert pair.chosen.tolist() == [100 + pair.row, 7, 2]
        assert len(pair.replacement) == 0
        assert pair.start == pair.end == 3


def test_offline_pairs_share_the_common_prefix_and_keep_both_halves() -> None:
    for pair in DatasetSource(table(pairs=True), seed=0, batch_size=4).next(0).pairs:
        assert pair.chosen.tolist() == [100 + pair.row, 7, 2]
        assert pair.rejected.tolist() == [100 + pair.row, 8, 9, 2]
        assert pair.start == 1
        assert pair.version == -1


def test_reference_scores_are_kept_for_the_rows_next_visit() -> None:
    source = DatasetSource(table(pairs=True), seed=0, batch_size=ROWS)
    batch = source.next(0)
    scores: list[ReferenceScore | None] = [ReferenceScore(3, np.full(5, p.row, np.float32)) for p in batch.pairs]
    scores[0] = None
    source.stepped(1, batch, scores)
    for pair in source.next(1).pairs:
        if pair.row == batch.pairs[0].row:
            assert pair.reference is None
        else:
            assert pair.reference is not None
            assert (pair.reference.version, pair.reference.logps[0]) == (3, pair.row)
