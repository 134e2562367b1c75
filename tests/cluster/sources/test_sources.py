"""Batches of given rows and of recorded pairs."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from cluster.sources.base import GivenRows, RecordedPairs
from cluster.storage.recording import PairRecorder, read_batches
from contracts.pair import PreferencePair, ReferenceScore, as_token_ids

ROWS = 12


def config(method: str, batch_size: int, seed: int = 0) -> RunConfig:
    values: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "model": {"path": "m"},
        "data": {"path": "d"},
        "learner": {"batch_size": batch_size},
    }
    if method == "sft":
        values |= {"objective": {"name": "sft"}, "reference": {"mode": "none"}}
    return RunConfig.model_validate(values)


def table(*, pairs: bool = False) -> TokenTable:
    """Row i has prompt [i] and response [100 + i, 7, 2]; its rejected response shares the first token."""
    rows = [[[i], [100 + i, 7, 2]] + ([[100 + i, 8, 9, 2]] if pairs else []) for i in range(ROWS)]
    return TokenTable.from_rows(rows)


def drawn(source: GivenRows, steps: range) -> list[list[int]]:
    """Row numbers by batch."""
    return [[pair.row for pair in source.next(step).pairs] for step in steps]


def test_every_row_comes_once_an_epoch_in_another_order_each_time() -> None:
    batches = drawn(GivenRows(table(), config("sft", 4)), range(9))
    epochs = [list(chain.from_iterable(batches[i : i + 3])) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_may_straddle_epochs_without_losing_or_repeating_rows() -> None:
    flat = list(chain.from_iterable(drawn(GivenRows(table(), config("sft", 5)), range(12))))
    assert Counter(flat) == dict.fromkeys(range(ROWS), 5)
    assert sorted(flat[:ROWS]) == list(range(ROWS))


def test_the_order_is_a_function_of_seed_and_step() -> None:
    first, again = GivenRows(table(), config("sft", 4)), GivenRows(table(), config("sft", 4))
    assert drawn(first, range(6)) == drawn(again, range(6))
    assert drawn(again, range(3, 6)) == drawn(first, range(3, 6)), "a resumed run asks for later steps first"
    assert drawn(first, range(6)) != drawn(GivenRows(table(), config("sft", 4, seed=1)), range(6))


def test_the_epoch_is_reported_as_a_fraction() -> None:
    source = GivenRows(table(), config("sft", 4))
    assert [source.next(step).metrics["epoch"] for step in (0, 2, 3)] == [4 / 12, 1.0, 16 / 12]


def test_supervised_rows_have_a_chosen_half_alone() -> None:
    for pair in GivenRows(table(), config("sft", 4)).next(0).pairs:
        assert pair.prompt.tolist() == [pair.row]
        assert pair.chosen.tolist() == [100 + pair.row, 7, 2]
        assert len(pair.replacement) == 0
        assert pair.start == pair.end == 3


def test_given_pairs_share_the_common_prefix_and_keep_both_halves() -> None:
    for pair in GivenRows(table(pairs=True), config("offline", 4)).next(0).pairs:
        assert pair.chosen.tolist() == [100 + pair.row, 7, 2]
        assert pair.rejected.tolist() == [100 + pair.row, 8, 9, 2]
        assert pair.start == 1
        assert pair.version == -1


def test_reference_scores_are_kept_for_the_rows_next_visit() -> None:
    source = GivenRows(table(pairs=True), config("offline", ROWS))
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


def written(index: int) -> PreferencePair:
    return PreferencePair(
        prompt=as_token_ids([1, 2]),
        chosen=as_token_ids([3, 4, 5]),
        start=1,
        end=2,
        replacement=as_token_ids([9, 8]),
        suffix_kept=True,
        index=index,
        row=7,
        actor="actor-0",
        versions=as_token_ids([4, 5]),
        mean_logprob=-0.25,
        ended=False,
    )


def test_a_replay_gives_the_recorded_batches_step_by_step(tmp_path: Path) -> None:
    recorder = PairRecorder(tmp_path / "pairs.parquet")
    for step in range(3):
        recorder.write(step, [written(2 * step), written(2 * step + 1)])
    recorder.close()
    source = RecordedPairs(read_batches(tmp_path / "pairs.parquet"))
    for step in (0, 1, 2, 1):
        pairs = source.next(step).pairs
        assert [pair.index for pair in pairs] == [2 * step, 2 * step + 1]
        assert pairs[0].rejected.tolist() == [3, 9, 8, 5]
    assert source.next(0).tickets is None
    assert source.stepped(1, source.next(0), [None, None]) == {}


def test_a_recorded_pair_that_comes_again_brings_its_reference_score_along() -> None:
    source = RecordedPairs([[written(0), written(1)], [written(1), written(2)]])
    score = ReferenceScore(3, np.ones(5, np.float32))
    source.stepped(1, source.next(0), [None, score])
    assert [pair.reference for pair in source.next(1).pairs] == [score, None]
