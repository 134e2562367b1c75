"""Pairs as an actor makes them."""

from __future__ import annotations

from contracts.pair import PreferencePair, as_token_ids


def generated(index: int) -> PreferencePair:
    """Response 3 4 5, of which 4 was rewritten as 9 8 by versions 4 and 5."""
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
