"""Two files of generations under one judge: win rate in both orders, and with length controlled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.evaluation.alpaca_eval import Generation
from cluster.evaluation.messages import Share
from cluster.judging.judge import Comparison, Refusal
from cluster.judging.verdict import Verdict
from cluster.judging.win_rate import length_controlled, win_rate
from contracts.errors import UserError

POINTS = {Verdict.FIRST: 1.0, Verdict.TIE: 0.5, Verdict.SECOND: 0.0}
"""Of the response in the first place."""


@dataclass(frozen=True)
class Pairing:
    """The responses of two models to the same instructions."""

    ours: list[Generation]
    theirs: list[Generation]
    """Aligned with ``ours``."""
    unpaired: int
    """Generations whose instruction the other file lacks."""


@dataclass(frozen=True)
class WinRate:
    """What a judge says of one model against another."""

    win_rate: Share
    length_controlled: Share
    prompts: int
    """Judged in both orders."""
    wins: int
    """Prompts won in one order and not lost in the other; losses likewise."""
    ties: int
    losses: int
    first_place: float
    """Share of judgements, ties halved, that went to the response shown first: 0.5 without a bias of position."""
    characters: float
    """Mean length of the model's responses."""
    other_characters: float
    left_out: int
    """Prompts with an answer of the judge that can't be read, or a request that it rejected."""
    unpaired: int


def pair(ours: Sequence[Generation], theirs: Sequence[Generation]) -> Pairing:
    """By instruction; of one that occurs several times, the first with the first.

    Raises:
        UserError: they have no instruction in common.
    """
    one, other = _numbered(ours), _numbered(theirs)
    both = [key for key in one if key in other]
    if not both:
        raise UserError("the two files have no instruction in common: nothing can be compared")
    unpaired = len(one) + len(other) - 2 * len(both)
    return Pairing([one[key] for key in both], [other[key] for key in both], unpaired)


def _numbered(generations: Sequence[Generation]) -> dict[tuple[str, int], Generation]:
    seen: Counter[str] = Counter()
    found = {}
    for generation in generations:
        found[generation.instruction, seen[generation.instruction]] = generation
        seen[generation.instruction] += 1
    return found


def comparisons(pairing: Pairing) -> list[Comparison]:
    """[2 × prompts]: every prompt with ours first, then every one with theirs first."""
    both = list(zip(pairing.ours, pairing.theirs, strict=True))
    return [Comparison(a.instruction, a.output, b.output) for a, b in both] + [
        Comparison(a.instruction, b.output, a.output) for a, b in both
    ]


def summarise(pairing: Pairing, verdicts: Sequence[Verdict | Refusal]) -> WinRate:
    """
    Args:
        verdicts: of ``comparisons(pairing)``.

    Raises:
        UserError: there is no prompt with a verdict in both orders.
    """
    count = len(pairing.ours)
    first = [POINTS.get(verdict) if isinstance(verdict, Verdict) else None for verdict in verdicts]
    both = list(enumerate(zip(first[:count], first[count:], strict=True)))
    judged = [(i, one, 1.0 - other) for i, (one, other) in both if one is not None and other is not None]
    if not judged:
        raise UserError("the judge gave no readable verdict in both orders of any prompt: see its answers in the file")
    places = [i for i, _, _ in judged]
    points = np.array([(one, other) for _, one, other in judged])
    ours, theirs = (np.array([len(side[i].output) for i in places], float) for side in (pairing.ours, pairing.theirs))
    preferences = points.mean(axis=1)
    return WinRate(
        win_rate(preferences),
        length_controlled(preferences, ours - theirs),
        prompts=len(judged),
        wins=int(np.sum(preferences > 0.5)),
        ties=int(np.sum(preferences == 0.5)),
        losses=int(np.sum(preferences < 0.5)),
        first_place=float((points[:, 0].mean() + 1.0 - points[:, 1].mean()) / 2),
        characters=float(ours.mean()),
        other_characters=float(theirs.mean()),
        left_out=count - len(judged),
        unpaired=pairing.unpaired,
    )
