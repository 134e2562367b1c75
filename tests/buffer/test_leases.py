"""Every plan index is accounted for exactly once, whoever is lost on the way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.leases import LeaseLedger

ACTORS = "abc"


@given(seed=st.integers(0, 2**32), operations=st.integers(1, 120))
@settings(max_examples=150)
def test_each_index_is_accounted_for_once_under_any_leases_losses_and_restores(seed, operations):
    choose = random.Random(seed)
    ledger, admitted = LeaseLedger(), 0
    holders: dict[int, str] = {}
    known: set[int] = set()  # reported and accepted
    handed: list[int] = []  # everything that some actor may still report, lost ones included
    for _ in range(operations):
        match choose.choice(["admit", "lease", "report", "report", "release", "restore"]):
            case "admit":
                admitted += choose.randrange(6)
            case "lease":
                actor, count = choose.choice(ACTORS), choose.randrange(1, 5)
                free, after = ledger.free(admitted), ledger.next
                pool = {i for i in range(after) if i not in holders and i not in known}
                assert free == len({i for i in pool if i < admitted}) + max(0, admitted - after)
                leased = ledger.lease(actor, count, admitted)
                assert leased == sorted([*(i for i in pool if i < admitted), *range(after, admitted)])[:count]
                holders.update(dict.fromkeys(leased, actor))
                handed += leased
            case "report" if handed:
                index = choose.choice(handed)
                assert ledger.account("x", index) == (index not in known)
                known.add(index)
                holders.pop(index, None)
            case "release":
                actor = choose.choice(ACTORS)
                mine = sorted(i for i, holder in holders.items() if holder == actor)
                assert ledger.release(actor) == mine
                for index in mine:
                    del holders[index]
            case "restore":
                ledger = LeaseLedger.restored(ledger.state())
                holders.clear()
                handed = [i for i in handed if i < ledger.next]
        assert ledger.leased == len(holders)
        assert ledger.accounted == len(known)
        assert ledger.mark == next(i for i in range(len(known) + 1) if i not in known)
    for actor in ACTORS:
        ledger.release(actor)
    rest = ledger.lease("d", 10**6, admitted)
    assert all(ledger.account("d", i) for i in rest)
    assert known.isdisjoint(rest)
    assert known | set(rest) == set(range(max(admitted, ledger.next)))


def test_returned_indices_are_leased_before_new_ones():
    ledger = LeaseLedger()
    assert ledger.lease("a", 3, 10) == [0, 1, 2]
    assert ledger.release("a") == [0, 1, 2]
    assert ledger.lease("b", 5, 10) == [0, 1, 2, 3, 4]


def test_a_late_report_of_a_lost_actor_counts_and_the_successors_does_not():
    ledger = LeaseLedger()
    ledger.lease("a", 1, 1)
    ledger.release("a")
    ledger.lease("b", 1, 1)
    assert ledger.account("a", 0)
    assert not ledger.account("b", 0)
    assert (ledger.leased, ledger.mark) == (0, 1)
    assert ledger.release("b") == []


def test_an_index_that_was_never_leased_is_rejected():
    with pytest.raises(ValueError, match="actor-1 reports plan index 4, which was never leased"):
        LeaseLedger().account("actor-1", 4)


def test_a_restored_ledger_leases_the_holes_first():
    ledger = LeaseLedger()
    ledger.lease("a", 6, 6)
    for index in (0, 2, 4):
        ledger.account("a", index)
    restored = LeaseLedger.restored(ledger.state())
    assert restored.mark == 1
    assert restored.lease("b", 9, 8) == [1, 3, 5, 6, 7]
