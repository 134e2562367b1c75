"""The replay index against a list of entries that is searched by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from buffer.config import BufferConfig
from buffer.index import ReplayIndex

LEVEL = 1e-3
"""A right sampler fails a chi-squared test once in 1 / LEVEL seeds; the seeds are fixed."""


@dataclass
class Entry:
    key: int
    version: int
    staleness: int
    draws: int = 0


def index_of(capacity: int, *, seed: int = 0, **config) -> ReplayIndex:
    return ReplayIndex(BufferConfig(capacity=capacity, **config), seed)


def filled(index: ReplayIndex, count: int) -> ReplayIndex:
    for _ in range(count):
        index.insert(version=0, staleness=0)
    return index


def searched(weights: dict[int, float], seed: int, draw: int, count: int) -> list[int]:
    """The slots of a draw by running sums over a dictionary: uniform numbers of (seed, draw) in turn, passing over
    slots that were found, round by round over what is left."""
    uniform = np.random.Generator(np.random.Philox(key=[seed, draw], counter=[0, 0, 0, 3]))
    left = dict(sorted(weights.items()))
    found: list[int] = []
    while len(found) < count:
        slots, sums = list(left), np.cumsum(np.array(list(left.values())))
        places = np.searchsorted(sums, uniform.random(count - len(found)) * sums[-1], side="right")
        found += dict.fromkeys(slots[place] for place in places)
        left = {slot: weight for slot, weight in left.items() if slot not in found}
    return found


changes = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 5)),
        st.tuples(st.just("draw"), st.integers(1, 4)),
        st.tuples(st.just("advance"), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("sampler", ["inverse_count", "uniform", "recent"])
@given(changes=changes, capacity=st.integers(1, 9), max_draws=st.integers(0, 3), max_age=st.integers(0, 3))
def test_index_equals_a_queue_searched_by_hand(sampler, changes, capacity, max_draws, max_age):
    index = index_of(capacity, seed=7, sampler=sampler, max_draws=max_draws, max_age=max_age)
    entries: list[Entry] = []
    step = inserted = draws = 0
    for name, number in changes:
        match name:
            case "insert":
                version = max(0, step - number)
                assert index.insert(version, step - version) == inserted
                entries.append(Entry(inserted, version, step - version))
                inserted += 1
                entries = [e for e in entries if e.key >= inserted - capacity]
            case "advance":
                step += 1
                index.expire(step)
            case "draw" if number <= len(entries):
                weights = {e.key % capacity: 1 / (e.draws + 1) for e in entries}
                if sampler == "uniform":
                    weights = dict.fromkeys(weights, 1.0)
                newest = sorted((e.key for e in entries), reverse=True)[:number]
                drawn = index.draw(number)
                if sampler == "recent":
                    assert drawn.keys.tolist() == newest
                else:
                    assert drawn.slots.tolist() == searched(weights, 7, draws, number)
                draws += 1
                chosen = [next(e for e in entries if e.key == key) for key in drawn.keys.tolist()]
                assert drawn.slots.tolist() == [e.key % capacity for e in chosen]
                assert drawn.draw_counts.tolist() == [e.draws for e in chosen]
                assert drawn.ages.tolist() == [inserted - 1 - e.key for e in chosen]
                assert drawn.staleness.tolist() == [e.staleness for e in chosen]
                for entry in chosen:
                    entry.draws += 1
        entries = [e for e in entries if not (max_age and step - e.version > max_age)]
        entries = [e for e in entries if not (max_draws and e.draws >= max_draws)]
        held = {e.key for e in entries}
        assert index.size == len(entries)
        assert index.evicted == inserted - len(entries)
        assert {key for key in range(-3, inserted + 3) if index.holds(key)} == held
        weights = {e.key % capacity: 1 / (e.draws + 1) if sampler == "inverse_count" else 1.0 for e in entries}
        assert [index._tree[slot] for slot in range(capacity)] == [weights.get(slot, 0.0) for slot in range(capacity)]


def test_the_oldest_entry_leaves_when_the_buffer_is_full():
    index = filled(index_of(3), 5)
    assert [key for key in range(6) if index.holds(key)] == [2, 3, 4]
    assert (index.size, index.evicted) == (3, 2)


def test_an_entry_in_an_evicted_ones_place_starts_with_no_draws():
    index = filled(index_of(4), 4)
    for _ in range(3):
        index.draw(4)
    filled(index, 1)
    assert [index._tree[slot] for slot in range(4)] == [1.0, 0.25, 0.25, 0.25]


def test_draws_have_the_distribution_of_drawing_one_after_the_other_without_replacement():
    index = filled(index_of(4), 4)
    state = index.state()
    state.draw_counts[:] = (0, 1, 2, 5)
    weights = [1, 1 / 2, 1 / 3, 1 / 6]
    trials = 12_000
    seen: Counter[tuple[int, ...]] = Counter()
    for draw in range(trials):
        index.restore(replace(state, draws=draw))
        seen[tuple(index.draw(3).slots.tolist())] += 1
    expected = {}
    for a, b, c in permutations(range(4), 3):
        second, third = 2 - weights[a], 2 - weights[a] - weights[b]
        expected[a, b, c] = trials * weights[a] / 2 * weights[b] / second * weights[c] / third
    assert chisquare([seen[cell] for cell in expected], list(expected.values())).pvalue > LEVEL


def test_uniform_draws_do_not_look_at_draw_counts():
    index = filled(index_of(50, sampler="uniform", seed=3), 50)
    counts = np.zeros(50)
    for _ in range(2000):
        counts[index.draw(1).slots] += 1
    assert chisquare(counts).pvalue > LEVEL


def test_inverse_counts_even_out_what_is_drawn():
    index = filled(index_of(50, seed=3), 50)
    for _ in range(400):
        index.draw(5)
    counts = index.state().draw_counts
    assert counts.sum() == 2000
    assert counts.std() < 0.6 * np.sqrt(40)  # uniform draws: about sqrt(40)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_one_draw_holds_no_entry_twice(count):
    index = filled(index_of(64), 64)
    for _ in range(50):
        assert len(set(index.draw(count).keys.tolist())) == count


def test_a_draw_of_more_than_there_is_is_rejected():
    with pytest.raises(ValueError, match="a draw of 3 from a buffer of 2 pairs"):
        filled(index_of(5), 2).draw(3)


def test_a_pair_older_than_the_limit_is_never_drawn_even_when_it_arrives_so():
    index = index_of(8, max_age=2)
    index.insert(version=4, staleness=3)
    index.insert(version=5, staleness=2)
    assert [index.holds(0), index.holds(1), index.size] == [False, True, 1]
    index.expire(8)
    assert index.size == 0


def test_the_draw_is_a_function_of_seed_number_and_entries():
    def run(seed: int, shards: int) -> list[list[int]]:
        index = filled(index_of(64, seed=seed, shards=shards), 64)
        return [index.draw(8).keys.tolist() for _ in range(20)]

    assert run(1, 1) == run(1, 4) == run(1, 64)
    assert run(1, 1) != run(2, 1)


@pytest.mark.parametrize("sampler", ["inverse_count", "uniform", "recent"])
def test_a_restored_index_goes_on_bit_for_bit_and_shares_no_memory(sampler):
    def go_on(index: ReplayIndex) -> list:
        log = []
        for i in range(30):
            index.insert(version=i, staleness=i % 3)
            index.expire(i)
            if index.size >= 3:
                drawn = index.draw(3)
                log += [drawn.keys.tolist(), drawn.draw_counts.tolist(), drawn.staleness.tolist()]
        return [*log, index.size, index.evicted, index.next_key, list(index._tree._node)]

    settings = {"seed": 5, "sampler": sampler, "max_draws": 3, "max_age": 9}
    first, second, third = (index_of(13, **settings) for _ in range(3))
    go_on(first)
    state = first.state()
    second.restore(state)
    expected = go_on(first)
    assert go_on(second) == expected
    third.insert(0, 0)  # what was there before is gone
    third.restore(state)
    assert go_on(third) == expected


def test_a_state_of_another_capacity_is_rejected():
    with pytest.raises(ValueError, match="capacity 4 for one of 5"):
        index_of(5).restore(index_of(4).state())


def test_a_million_slots_are_drawn_from_with_a_few_operations_per_level():
    small, large = filled(index_of(1 << 10), 1 << 10), index_of(1 << 20)
    state = large.state()
    state.present[:] = True
    large.restore(replace(state, next_key=1 << 20))
    lookups: Counter[int] = Counter()

    class Counted(np.ndarray):
        def __getitem__(self, i):
            lookups[len(self)] += np.size(i)
            return super().__getitem__(i)

    for index in (small, large):
        index._tree._nodes = index._tree._nodes.view(Counted)
        index.draw(8)
    assert lookups[2 << 20] <= 2.2 * lookups[2 << 10]
