"""The sum tree against running sums computed by hand."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from buffer.sum_tree import SumTree

whole = st.lists(st.integers(0, 5), min_size=1, max_size=40)
real = st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=1, max_size=40)


def tree_of(weights) -> SumTree:
    tree = SumTree(len(weights))
    tree.put(np.arange(len(weights)), np.array(weights, np.float64))
    return tree


@given(weights=whole)
@example(weights=[0, 0, 3])
@example(weights=[1])
def test_find_gives_the_slot_at_which_the_running_sum_first_exceeds_the_mass(weights):
    tree, total = tree_of(weights), sum(weights)
    assert tree.total == total
    masses = np.arange(4 * total) / 4  # quarters and sums of them are exact
    expected = np.searchsorted(np.cumsum(weights), masses, side="right")
    assert tree.find(masses).tolist() == expected.tolist()


@given(weights=real, fractions=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
@example(weights=[0.1] * 10 + [0.0] * 7, fractions=[1.0])
def test_find_never_gives_a_slot_of_weight_zero_and_is_right_within_rounding(weights, fractions):
    tree = tree_of(weights)
    if not tree.total:
        return
    sums = np.concatenate(([0.0], np.cumsum(weights)))
    rounding = 1e-12 * tree.total
    for fraction in fractions:
        mass = fraction * tree.total  # may equal the total, which exact arithmetic excludes
        (slot,) = tree.find(np.array([mass])).tolist()
        assert weights[slot] > 0.0
        assert sums[slot] - rounding <= mass <= sums[slot + 1] + rounding


@given(
    size=st.integers(1, 33),
    changes=st.lists(st.tuples(st.integers(0, 32), st.floats(0.0, 1e9), st.booleans()), max_size=60),
)
def test_after_any_changes_the_tree_is_the_one_built_anew_bit_for_bit(size, changes):
    tree, weights = SumTree(size), [0.0] * size
    for number, weight, alone in changes:
        slot = number % size
        if alone:
            tree[slot] = weight
            weights[slot] = weight
        else:
            slots = np.array(sorted({slot, (slot * 7 + 3) % size, size - 1}))
            tree.put(slots, weight / (1.0 + slots))
            for s in slots.tolist():
                weights[s] = weight / (1.0 + s)
    assert [tree[slot] for slot in range(size)] == weights
    assert tree._node == tree_of(weights)._node
    level = weights + [0.0] * (tree.leaves - size)
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    assert tree.total == level[0]


@given(weights=whole, slot=st.integers(0, 39))
def test_below_is_the_sum_of_the_lower_slots(weights, slot):
    slot %= len(weights)
    assert tree_of(weights).below(slot) == sum(weights[:slot])


class Counting(array):
    """An array that counts accesses."""

    accesses = 0

    def __getitem__(self, i):
        Counting.accesses += 1
        return super().__getitem__(i)

    def __setitem__(self, i, value):
        Counting.accesses += 1
        super().__setitem__(i, value)


def test_a_change_touches_three_nodes_per_level_of_a_million_slots():
    tree = SumTree(1_000_000)
    tree._node = Counting("d", tree._node)
    Counting.accesses = 0
    tree[777_777] = 1.0
    assert Counting.accesses <= 3 * 20 + 1
    Counting.accesses = 0
    assert tree.below(900_000) == 1.0
    assert Counting.accesses <= 20
