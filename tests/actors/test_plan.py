"""The sampling plan: a pure function whose epochs visit every row and whose cuts are uniform."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from actors.plan import BLOCK, SHORT_MARGIN, Plan, cut, permuted
from actors.token_table import DatasetShare
from support.paths import REPOSITORY

LEVEL = 1e-3
"""A right generator fails a chi-squared test once in 1 / LEVEL seeds; the seeds are fixed."""


def plan_of(rows: int, *, seed: int = 0, length: int = 50, segment: int | None = 8, responses: int = 1) -> Plan:
    return Plan(seed, np.full(rows, length, np.int32), segment, responses)


@given(seed=st.integers(0, 2**63), rows=st.integers(1, 300), index=st.integers(0, 10**12), responses=st.integers(1, 4))
@settings(max_examples=50)
def test_items_depend_on_seed_and_index_alone(seed, rows, index, responses):
    plan = plan_of(rows, seed=seed, responses=responses)
    item = plan.item(index)
    for other in (0, index + 1, index + 17):
        plan.item(other)  # leaves nothing behind
    assert plan.item(index) == item
    assert pickle.loads(pickle.dumps(plan)).item(index) == item
    assert item.index == index
    assert 0 <= item.row < rows
    assert 0 <= item.sampling_seed < 2**63


@given(seed=st.integers(0, 2**63), index=st.integers(0, 2**62))
@settings(max_examples=50)
def test_a_sampling_seed_is_the_philox_word_of_plan_seed_and_index(seed, index):
    word = int(np.random.Philox(key=[seed, index], counter=[0, 0, 0, 2]).random_raw())
    assert plan_of(10, seed=seed).item(index).sampling_seed == word >> 1


def test_another_process_plans_the_same():
    script = (
        "import numpy as np; from actors.plan import Plan; plan = Plan(3, np.arange(1, 41, dtype=np.int32), 8, 2);"
        "print([plan.item(i) for i in range(50)])"
    )
    root = REPOSITORY
    there = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True).stdout
    here = Plan(3, np.arange(1, 41, dtype=np.int32), 8, 2)
    assert there.strip() == str([here.item(i) for i in range(50)])


@given(rows=st.integers(1, 70), seed=st.integers(0, 2**32), responses=st.integers(1, 3))
@settings(max_examples=50)
def test_every_epoch_visits_each_row_once_and_k_times_over(rows, seed, responses):
    plan = plan_of(rows, seed=seed, responses=responses)
    for epoch in range(3):
        first = epoch * rows * responses
        items = [plan.item(i) for i in range(first, first + rows * responses)]
        assert {item.epoch for item in items} == {epoch}
        assert sorted(item.row for item in items) == sorted([*range(rows)] * responses)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_the_permutation_is_one_for_any_number_of_rows(rows):
    assert sorted(permuted(place, rows, (1, 2)) for place in range(rows)) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        (seed, epoch): tuple(permuted(place, 100, (seed, epoch)) for place in range(100))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9


def test_every_row_comes_at_every_place_equally_often():
    counts = np.zeros((5, 5), int)
    for epoch in range(4000):
        for place in range(5):
            counts[place, permuted(place, 5, (9, epoch))] += 1
    assert chisquare(counts, axis=1).pvalue.min() > LEVEL / 5


@given(length=st.integers(1, 3000), segment=st.integers(1, 300), draw=st.integers(0, 2**64 - 1))
def test_a_cut_leaves_room_for_a_whole_segment_and_short_responses_are_taken_whole(length, segment, draw):
    start, end = cut(length, segment, draw)
    if length < segment + SHORT_MARGIN:
        assert (start, end) == (0, length)
    else:
        assert end - start == segment
        assert start >= 0
        assert end <= length
    assert cut(length, None, draw) == (0, length)


def test_the_ends_of_the_random_range_give_the_first_and_the_last_cut():
    assert cut(20, 8, 0) == (0, 8)
    assert cut(20, 8, 2**64 - 1) == (12, 20)


def test_cuts_are_uniform():
    plan = plan_of(10, length=20, segment=8, seed=4)
    starts = np.bincount([plan.item(i).start for i in range(13 * 600)], minlength=13)
    assert len(starts) == 13
    assert chisquare(starts).pvalue > LEVEL


@given(seed=st.integers(0, 2**32), visit=st.integers(0, 10**6), responses=st.integers(2, 5))
@settings(max_examples=50)
def test_the_responses_of_a_visit_share_row_and_cut_and_differ_in_their_sampling(seed, visit, responses):
    plan = plan_of(37, seed=seed, responses=responses)
    items = [plan.item(visit * responses + k) for k in range(responses)]
    assert len({(item.row, item.epoch, item.start, item.end) for item in items}) == 1
    assert len({item.sampling_seed for item in items}) == responses


def test_sampling_seeds_of_different_work_and_runs_differ():
    seeds = {plan_of(10, seed=seed).item(i).sampling_seed for seed in range(10) for i in range(200)}
    assert len(seeds) == 2000


def test_whole_responses_are_planned_without_a_segment_length():
    plan = Plan(0, np.array([4, 9], np.int32), None, 1)
    assert sorted((plan.item(i).start, plan.item(i).end) for i in range(2)) == [(0, 4), (0, 9)]


SHARES = (DatasetShare(0, 30, 3.0), DatasetShare(30, 7, 1.0), DatasetShare(37, 500, 0.5))


def mixed(seed: int = 0) -> Plan:
    return Plan(seed, np.full(537, 9, np.int32), None, 1, SHARES)


def test_datasets_come_in_the_proportion_of_their_weights():
    rows = np.array([mixed().item(i).row for i in range(2 * BLOCK)])
    for share in SHARES:
        drawn = np.count_nonzero((rows >= share.first) & (rows < share.first + share.rows))
        assert abs(drawn / len(rows) - share.weight / 4.5) < 1e-3


def test_every_row_of_a_dataset_comes_once_before_any_comes_again():
    rows = [mixed().item(i).row for i in range(2 * BLOCK)]
    for share in SHARES:
        own = [row for row in rows if share.first <= row < share.first + share.rows]
        for start in range(0, len(own) - share.rows + 1, share.rows):
            assert sorted(own[start : start + share.rows]) == list(range(share.first, share.first + share.rows))
        assert own[: share.rows] != own[share.rows : 2 * share.rows], "in another order"


def test_a_mix_is_a_function_of_seed_and_index():
    assert [mixed().item(i).row for i in range(5000, 5050)] == [mixed().item(i).row for i in range(5000, 5050)]
    assert [mixed().item(i).row for i in range(50)] != [mixed(1).item(i).row for i in range(50)]


def test_a_dataset_of_little_weight_still_comes():
    plan = Plan(0, np.full(4, 9, np.int32), None, 1, (DatasetShare(0, 2, 1e9), DatasetShare(2, 2, 1.0)))
    rows = [plan.item(i).row for i in range(3 * BLOCK)]
    assert sum(row >= 2 for row in rows) == 3
