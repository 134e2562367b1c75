"""Held-out rows are evaluated when it is due, the same ones every time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from actors.token_table import TokenTable
from cluster.config.sections import DataConfig
from cluster.run.held_out import HeldOut
from contracts.pair import PreferencePair

ROWS = [([i], [10 + i, 2]) for i in range(6)]
PAIRS = [([i], [7, 10 + i, 2], [7, 20 + i, 2]) for i in range(6)]


@dataclass
class Group:
    """Remembers what it evaluated."""

    seen: list[tuple[list[PreferencePair], bool]] = field(default_factory=list)

    def evaluate(self, pairs: list[PreferencePair], *, chosen_only: bool) -> dict[str, float]:
        self.seen.append((pairs, chosen_only))
        return {"loss": 0.5, "rewards/margins": 0.1, "tokens/trained": 9.0}


def evaluated(table: TokenTable | None, **data: Any) -> tuple[Group, dict[int, set[str]]]:
    """The group, and the metrics by step of a run of ten."""
    group = Group()
    held_out = HeldOut(table, DataConfig(path="d", **data), cast(Any, group), 10)
    return group, {step: set(found) for step in range(1, 11) if (found := held_out.metrics(step))}


def test_it_happens_every_so_many_steps_and_at_the_end() -> None:
    group, found = evaluated(TokenTable.from_rows(ROWS), held_out_every=4)
    assert found == {step: {"eval/loss", "eval/rewards/margins", "time/eval_s"} for step in (4, 8, 10)}
    assert [[pair.index for pair in pairs] for pairs, _ in group.seen] == [list(range(6))] * 3


def test_rows_have_a_chosen_half_alone_and_pairs_have_both() -> None:
    (pairs, chosen_only), *_ = evaluated(TokenTable.from_rows(ROWS))[0].seen
    assert chosen_only
    assert [(p.prompt.tolist(), p.chosen.tolist(), len(p.replacement)) for p in pairs[:1]] == [([0], [10, 2], 0)]
    (pairs, chosen_only), *_ = evaluated(TokenTable.from_rows(PAIRS))[0].seen
    assert not chosen_only
    assert [(p.chosen.tolist(), p.rejected.tolist(), p.start) for p in pairs[:1]] == [([7, 10, 2], [7, 20, 2], 1)]


def test_at_most_so_many_rows_are_evaluated() -> None:
    (pairs, _), *_ = evaluated(TokenTable.from_rows(ROWS), held_out_rows=2)[0].seen
    assert [pair.index for pair in pairs] == [0, 1]


def test_without_held_out_rows_nothing_happens() -> None:
    group, found = evaluated(None)
    assert (group.seen, found) == ([], {})
