"""The messages between actors or driver, the coordinator and the shards: frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from buffer.index import Drawn, IndexState
from buffer.leases import LedgerState
from buffer.rate_limiter import LimiterState
from buffer.slot_layout import SlotLayout
from contracts.pair import PreferencePair, ReferenceScore


class Outcome(IntEnum):
    """What became of one plan index. Every index gets exactly one."""

    INSERTED = 0
    IDENTICAL = 1
    """The replacement equals the original segment: chosen and rejected would be the same."""
    DISCARDED = 2
    """The replacement ended the response early, and ``generation.after_eos`` leaves no pair: it is ``reject``, or it is
    ``keep`` and the end token was all there was."""
    FAILED = 3
    """The engine refused the request; the reason is in the actor's log."""


# ---- what an actor hands to its ReplayBuffer, and what that sends on ----------------------------------------------


@dataclass(frozen=True)
class Finished:
    """One plan index with its outcome.

    Raises:
        ValueError: a pair without INSERTED, or INSERTED without a pair.
    """

    index: int
    outcome: Outcome
    pair: PreferencePair | None = None
    """There exactly when the outcome is INSERTED."""

    def __post_init__(self) -> None:
        if (self.pair is not None) != (self.outcome is Outcome.INSERTED):
            there = "without a pair" if self.pair is None else "with a pair"
            raise ValueError(f"plan index {self.index}: outcome {self.outcome.name} {there}")


@dataclass(frozen=True)
class LeaseAnswer:
    """The plan indices that an actor may work on."""

    indices: list[int] | None
    """None: nothing will come any more, the buffer is closed or the actor was given up."""


@dataclass(frozen=True)
class InsertRow:
    """One finished plan index, its pair encoded."""

    index: int
    outcome: Outcome
    payload: bytes | None
    """The pair as of ``buffer.codec``; None unless INSERTED."""
    version: int
    """Newest weights version behind the pair; -1 without one."""


@dataclass(frozen=True)
class InsertRequest:
    """What an actor has finished since its last insert."""

    actor: str
    rows: list[InsertRow]
    generated_tokens: int
    """Tokens of the replacements in these pairs."""


# ---- what the learner's side asks for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BufferStats:
    """Counters since the start of the run."""

    size: int = 0
    """Pairs in the buffer."""
    capacity: int = 0
    mark: int = 0
    """Every plan index below this is accounted for."""
    leased: int = 0
    """Plan indices that an actor works on."""
    inserted: int = 0
    identical: int = 0
    discarded: int = 0
    failed: int = 0
    """Plan indices by outcome."""
    duplicates: int = 0
    """Reports of indices that were accounted for already."""
    generated_tokens: int = 0
    identical_fraction: float = float("nan")
    """Of the plan indices that were accounted for between the last two draws, if any was; else as before."""
    draws: int = 0
    evicted: int = 0
    """Pairs that have left."""
    blocked_lease_s: float = 0.0
    """Seconds that actors waited for admission, added up over the waiting calls."""
    blocked_draw_s: float = 0.0
    """Seconds that draws waited for pairs."""

    @property
    def accounted(self) -> int:
        """Plan indices whose outcome is known."""
        return self.inserted + self.identical + self.discarded + self.failed


@dataclass(frozen=True)
class Drawing:
    """Counters at the last draw."""

    accounted: int = 0
    identical: int = 0
    identical_fraction: float | None = None
    """As in ``BufferStats``; None: no index was accounted for yet."""

    def next(self, accounted: int, identical: int) -> Drawing:
        """Those of a draw with these counters."""
        fresh = accounted - self.accounted
        share = (identical - self.identical) / fresh if fresh else self.identical_fraction
        return Drawing(accounted, identical, share)


@dataclass(frozen=True)
class DrawAnswer:
    """A batch: which slots, and where their pairs come from."""

    drawn: Drawn
    payloads: list[Any]
    """A reference to a ``SlotPayloads`` from each shard that has some of the slots."""
    stats: BufferStats
    """Right after the draw."""


@dataclass(frozen=True)
class ItemScores:
    """Reference log-probabilities by item key."""

    scores: dict[int, ReferenceScore]


# ---- what goes to and comes from a shard --------------------------------------------------------------------------


@dataclass(frozen=True)
class SlotPayloads:
    """Encoded pairs by slot."""

    payloads: dict[int, bytes]


@dataclass(frozen=True)
class SlotScores:
    """Reference log-probabilities by slot."""

    scores: dict[int, ReferenceScore]


# ---- the coordinator's part of a snapshot -------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldRow:
    """An accounted index that may not be seen yet: in lockstep pairs enter in the order of their indices."""

    row: InsertRow
    step: int
    """Optimizer steps completed when it arrived."""


@dataclass(frozen=True)
class CoordinatorState:
    """All that the coordinator knows at one moment, leases and waiting calls aside: their holders are gone."""

    index: IndexState
    ledger: LedgerState
    limiter: LimiterState
    held: list[HeldRow]
    visible: int
    """Plan indices below this have been made visible."""
    counts: dict[Outcome, int]
    """Visible plan indices by outcome."""
    drawing: Drawing
    duplicates: int
    generated_tokens: int
    layout: SlotLayout
    """Of the shards' files."""
