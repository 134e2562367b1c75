"""One preference pair as it travels: token ids, the cut, the replacement, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
"""int32 token ids, shape [tokens]."""

REGIONS = ("prefix", "chosen_segment", "chosen_suffix", "rejected_segment", "rejected_suffix")
"""Order of the region axis wherever log-probabilities are kept by region: A, B, C of the chosen
response, then B', C of the rejected one."""


def as_token_ids(tokens: object) -> TokenIds:
    """A contiguous int32 array [tokens] of any integer sequence."""
    return np.ascontiguousarray(tokens, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class ReferenceScore:
    """Log-probabilities of a pair under one reference, by region."""

    version: int
    """Version of the reference that gave them."""
    logps: NDArray[np.float32]
    """float32 [5], sums in nats over the regions of ``REGIONS``."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """(prompt x, chosen y+ = A B C, rejected y- = A B' C or A B').

    The rejected half is stored as what differs: ``replacement`` (B') in place of
    ``chosen[start:end]`` (B), and whether the suffix ``chosen[end:]`` (C) was kept.
    """

    prompt: TokenIds
    """int32 [prompt tokens]."""
    chosen: TokenIds
    """int32 [response tokens], end-of-sequence included."""
    start: int
    end: int
    """The cut: B is ``chosen[start:end]``, 0 <= start <= end <= len(chosen)."""
    replacement: TokenIds
    """int32 [replacement tokens]: B'."""
    suffix_kept: bool
    """Whether C follows B' in the rejected response."""
    index: int = -1
    """Plan index that made the pair; the row number for offline pairs."""
    row: int = -1
    """Row of the dataset."""
    actor: str = ""
    """Which actor generated the replacement; empty for offline pairs."""
    versions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [replacement tokens]: weights version (optimizer step of the EMA) that generated each
    token; empty for offline pairs."""
    mean_logprob: float = float("nan")
    """Mean log-probability in nats of the replacement's tokens under the weights that generated them, before
    temperature."""
    ended: bool = False
    """Whether the replacement ends with a generated end-of-sequence token."""
    reference: ReferenceScore | None = None
    """Cached reference log-probabilities."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= len(self.chosen):
            raise ValueError(
                f"pair {self.index}: cut [{self.start}, {self.end}) is outside the chosen response of "
                f"{len(self.chosen)} tokens"
            )

    @property
    def prefix(self) -> TokenIds:
        """A: int32 [start]."""
        return self.chosen[: self.start]

    @property
    def segment(self) -> TokenIds:
        """B: int32 [end - start]."""
        return self.chosen[self.start : self.end]

    @property
    def suffix(self) -> TokenIds:
        """C: int32 [len(chosen) - end]."""
        return self.chosen[self.end :]

    @property
    def rejected(self) -> TokenIds:
        """y-: int32 [rejected tokens]."""
        tail = (self.suffix,) if self.suffix_kept else ()
        return np.concatenate((self.prefix, self.replacement, *tail))

    @property
    def version(self) -> int:
        """Oldest weights version behind the pair; -1 for offline pairs."""
        return int(self.versions.min()) if len(self.versions) else -1

    @property
    def newest_version(self) -> int:
        """Newest weights version behind the pair, the one it was finished with; -1 for offline pairs."""
        return int(self.versions.max()) if len(self.versions) else -1

    @property
    def shared_tokens(self) -> int:
        """Tokens that both halves share: prompt and A."""
        return len(self.prompt) + self.start

    @property
    def cost_tokens(self) -> int:
        """Tokens that a prefix-shared forward computes: x A, B C, B' C."""
        chosen_branch = len(self.chosen) - self.start
        rejected_branch = len(self.replacement) + (len(self.chosen) - self.end if self.suffix_kept else 0)
        return self.shared_tokens + chosen_branch + rejected_branch

    def with_reference(self, reference: ReferenceScore) -> PreferencePair:
        return replace(self, reference=reference)


def offline_pair(index: int, prompt: TokenIds, chosen: TokenIds, rejected: TokenIds) -> PreferencePair:
    """A pair whose rejected half comes from a dataset: A is the common prefix, no suffix is shared."""
    shorter = min(len(chosen), len(rejected))
    differs = np.flatnonzero(chosen[:shorter] != rejected[:shorter])
    start = int(differs[0]) if len(differs) else shorter
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        start=start,
        end=len(chosen),
        replacement=rejected[start:],
        suffix_kept=False,
        index=index,
        row=index,
    )


def supervised(index: int, prompt: TokenIds, chosen: TokenIds) -> PreferencePair:
    """A record with a chosen half alone, as the ``sft`` objective reads it."""
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        start=len(chosen),
        end=len(chosen),
        replacement=np.zeros(0, np.int32),
        suffix_kept=False,
        index=index,
        row=index,
    )
