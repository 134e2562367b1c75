"""Cuts a response and puts the rewritten segment in its place, on token ids alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.config import AfterEos
from actors.plan import PlanItem
from actors.token_table import Row
from buffer.messages import Outcome
from contracts.pair import PreferencePair, TokenIds, as_token_ids


def context(row: Row, item: PlanItem) -> TokenIds:
    """What the engine continues: prompt and A, int32 [prompt + start]."""
    return np.concatenate((row.prompt, row.response[: item.start]))


def splice(
    row: Row,
    item: PlanItem,
    replacement: Sequence[int],
    ends: Collection[int],
    after_eos: AfterEos,
    *,
    actor: str = "",
    versions: NDArray[np.int32] | None = None,
    mean_logprob: float = float("nan"),
) -> tuple[Outcome, PreferencePair | None]:
    """The pair of a rewritten segment B', or why there is none.

    Without an end-of-sequence token in B' the rejected response is A B' C. With one, ``after_eos`` says:
    ``drop`` (the paper's code) A B'; ``keep`` A B' C with the end token taken off B', so that it stays one
    response; ``reject`` no pair. An end that is also the response's own end (C is empty) is no early end.

    Args:
        replacement: B', ending at its first end-of-sequence token if it has one.

    Raises:
        ValueError: B' goes on after an end-of-sequence token, or is longer than B; the engine was asked for neither.
    """
    new = as_token_ids(replacement)
    if len(new) > item.end - item.start:
        raise ValueError(
            f"index {item.index}: {len(new)} tokens were generated for a segment of {item.end - item.start}"
        )
    places = [i for i, token in enumerate(new.tolist()) if token in ends]
    if places and places[0] != len(new) - 1:
        raise ValueError(f"index {item.index}: the segment goes on after an end-of-sequence token")
    if versions is None:
        versions = np.zeros(len(new), np.int32)
    ended = bool(places)
    has_suffix = item.end < len(row.response)
    if ended and has_suffix and after_eos == "reject":
        return Outcome.DISCARDED, None
    suffix_kept = not ended
    if ended and has_suffix and after_eos == "keep":
        new, versions, suffix_kept = new[:-1], versions[:-1], True
        if not len(new):
            return Outcome.DISCARDED, None  # nothing is left to put in place of B
    pair = PreferencePair(
        prompt=row.prompt,
        chosen=row.response,
        start=item.start,
        end=item.end,
        replacement=new,
        suffix_kept=suffix_kept and has_suffix,
        index=item.index,
        row=item.row,
        actor=actor,
        versions=versions,
        mean_logprob=mean_logprob,
        ended=ended,
    )
    if np.array_equal(pair.rejected, pair.chosen):
        return Outcome.IDENTICAL, None
    check(pair, row)
    return Outcome.INSERTED, pair


def check(pair: PreferencePair, row: Row) -> None:
    """What every inserted pair fulfils: the chosen half is the row's response, the rejected half shares its prefix,
    and its suffix where that was kept.

    Raises:
        ValueError: it does not.
    """
    rejected = pair.rejected
    same = np.array_equal(pair.chosen, row.response) and np.array_equal(pair.prompt, row.prompt)
    same = same and np.array_equal(rejected[: pair.start], row.response[: pair.start])
    if pair.suffix_kept:
        suffix = row.response[pair.end :]
        same = same and np.array_equal(rejected[len(rejected) - len(suffix) :], suffix)
    if not same:
        raise ValueError(f"index {pair.index}: the pair does not share prompt, prefix or suffix with row {pair.row}")
