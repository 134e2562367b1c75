"""Mean lengths, against pairs that the plan really makes."""

from __future__ import annotations

import numpy as np
import pytest

from actors.plan import Plan
from actors.token_table import TokenTable
from cluster.config.loading import validate_config
from cluster.planning.workload import assumed, fullest_batch_tokens, of_table, trained_tokens


def test_mean_lengths_are_those_of_the_cuts_that_the_plan_draws() -> None:
    draws = np.random.default_rng(0)
    rows = [[[1] * draws.integers(5, 50), [2] * draws.integers(1, 40)] for _ in range(300)]
    table = TokenTable.from_rows(rows)
    workload = of_table(table, 16)
    items = [Plan(0, table.response_lengths, 16, 1).item(i) for i in range(6000)]
    lengths = table.response_lengths[[item.row for item in items]]
    assert workload.segment == pytest.approx(np.mean([item.end - item.start for item in items]), rel=0.01)
    assert workload.prefix == pytest.approx(np.mean([item.start for item in items]), rel=0.05)
    assert workload.suffix == pytest.approx(np.mean(lengths - [item.end for item in items]), rel=0.05)
    assert workload.prompt == pytest.approx(np.mean([len(row[0]) for row in rows]))
    assert workload.pair == workload.prompt + workload.response + workload.segment + workload.suffix


def test_whole_responses_have_nothing_around_them() -> None:
    workload = of_table(TokenTable.from_rows([[[1, 2], [3, 4, 5]]]), None)
    assert (workload.segment, workload.prefix, workload.suffix) == (3, 0, 0)


def test_the_forward_decides_what_is_computed() -> None:
    values = {"model": {"path": "m"}, "data": {"path": "d"}, "generation": {"segment_length": 10}}
    shared = validate_config(values, "test")
    packed = validate_config(values | {"learner": {"forward": "packed"}}, "test")
    supervised = {"method": "sft", "objective": {"name": "sft"}, "reference": {"mode": "none"}}
    workload = assumed(shared, 100, 50)
    assert trained_tokens(shared, workload) == 100 + 50 + 10 + 20
    assert trained_tokens(packed, workload) == 300
    assert trained_tokens(validate_config(values | supervised, "test"), workload) == 150


def test_one_batch_in_hundreds_has_more_tokens_than_the_fullest() -> None:
    draws = np.random.default_rng(0)
    rows = [[[1] * draws.integers(5, 200), [2] * draws.integers(1, 100)] for _ in range(500)]
    values = {"model": {"path": "m"}, "data": {"path": "d"}, "learner": {"batch_size": 16, "forward": "packed"}}
    run = validate_config(values, "test")
    lengths = np.array([2 * sum(map(len, row)) for row in rows])
    batches = lengths[draws.integers(0, 500, (20_000, 16))].sum(1)
    larger = np.mean(batches > fullest_batch_tokens(run, of_table(TokenTable.from_rows(rows), None)))
    assert 1 / 5000 < larger < 1 / 200
