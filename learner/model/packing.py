"""Lays preference pairs out as rows of tokens, and says which hidden state scores which token."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from contracts.pair import REGIONS, PreferencePair

Mode = Literal["shared", "packed", "padded"]
PREFIX, CHOSEN_SEGMENT, CHOSEN_SUFFIX, REJECTED_SEGMENT, REJECTED_SUFFIX = range(len(REGIONS))


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, stop) of a row; each attends to the row's [shared_start, shared_stop) and to its
    own segment up to itself. In sequence order the shared part comes directly before the segment."""

    start: int
    stop: int
    shared_start: int
    shared_stop: int


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Who attends to whom in one row. The segments cover the row from 0 in order."""

    segments: tuple[Segment, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What the attention of the device derives from the segments once and every layer uses."""


@dataclass(frozen=True)
class PackedBatch:
    """What one forward computes. All tensors int64 unless said."""

    pairs: tuple[int, ...]
    """Which of the given pairs, in the order of this batch's pair axis."""
    input_ids: Tensor
    """[rows, width]; one row unless padded."""
    position_ids: Tensor
    """[rows, width]: both branches of a pair continue from their shared part."""
    attention_mask: Tensor | None
    """[rows, width], 1 on real tokens (padded alone)."""
    layout: RowLayout | None
    """None when padded."""
    predictors: Tensor
    """[scored]: position, in the flattened [rows * width], whose hidden state predicts the token."""
    targets: Tensor
    """[scored]: the token. Tokens of the prefix A come first."""
    owners: Tensor
    """[scored]: pair * 5 + region, the pair counted within this batch."""
    prefix_scored: int
    """How many of the scored tokens belong to A."""
    counts: Tensor
    """int32 [pairs, 5]: scored tokens by region."""

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> PackedBatch:
        moved: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        # A fresh layout: what attention derived from the old one lies on the old device.
        layout = RowLayout(self.layout.segments) if self.layout else None
        return replace(self, layout=layout, **moved)


def pack(
    pairs: Sequence[PreferencePair], tokens_per_batch: int, mode: Mode, *, chosen_only: bool = False
) -> list[PackedBatch]:
    """Every pair in exactly one batch of at most ``tokens_per_batch`` computed tokens; a pair over that is
    a batch of its own.

    ``shared``: a row is [x A][B C][B' C] for many pairs. ``packed``: both halves as documents of their own
    in one row. ``padded``: one half a row. Halves in which nothing is scored are left out; with
    ``chosen_only`` the rejected ones are.

    A first token without anything before it (empty prompt, and empty A for a branch) has no predictor
    and is not scored, as in any causal model without a start token.
    """
    build = _padded_batch if mode == "padded" else _row_batch
    documents = [_documents(pair, mode, chosen_only) for pair in pairs]
    return [build(pairs, documents, members) for members in _fill(documents, tokens_per_batch, padded=mode == "padded")]


def split_by_cost(pairs: Sequence[PreferencePair], ranks: int) -> list[list[int]]:
    """Indices of ``pairs`` for each rank, near-equal in tokens.

    The largest differencing method (Karmarkar and Karp, 1982): every pair begins as a division of its own, and the two
    most uneven divisions are merged, heavy parts onto light ones, until one is left. No two ranks differ by more than
    the longest pair; with as many pairs as ranks or more, each rank has one.
    """
    empty: tuple[int, tuple[int, ...]] = (0, ())
    divisions = [
        # (minus how uneven, the first of its pairs, parts from heavy to light)
        (-pair.cost_tokens, i, [(pair.cost_tokens, (i,)), *[empty] * (ranks - 1)])
        for i, pair in enumerate(pairs)
    ]
    heapq.heapify(divisions)
    while len(divisions) > 1:
        _, i, heavy = heapq.heappop(divisions)
        _, j, light = heapq.heappop(divisions)
        merged = [(a + b, of_a + of_b) for (a, of_a), (b, of_b) in zip(heavy, reversed(light), strict=True)]
        merged.sort(reverse=True)
        heapq.heappush(divisions, (merged[-1][0] - merged[0][0], min(i, j), merged))
    parts = divisions[0][2] if divisions else [empty] * ranks
    return [sorted(members) for _, members in parts]


@dataclass(frozen=True, slots=True)
class _Document:
    """One run of tokens [tokens] that continues ``skipped`` tokens of the document before it."""

    tokens: np.ndarray
    skipped: int
    scored_from: int
    """Position (of the whole sequence) of the first scored token."""
    bounds: tuple[int, int]
    """Positions at which segment and suffix begin."""
    regions: tuple[int, int, int]
    """Regions before, between and after the bounds."""


def _documents(pair: PreferencePair, mode: Mode, chosen_only: bool) -> list[_Document]:
    prompt, shared = len(pair.prompt), pair.shared_tokens
    chosen_regions = (PREFIX, CHOSEN_SEGMENT, CHOSEN_SUFFIX)
    rejected_regions = (PREFIX, REJECTED_SEGMENT, REJECTED_SUFFIX)
    chosen = np.concatenate((pair.prompt, pair.chosen))
    chosen_bounds = (shared, prompt + pair.end)
    rejected_bounds = (shared, shared + len(pair.replacement))
    rejected_tokens = len(pair.replacement) + (len(pair.suffix) if pair.suffix_kept else 0)
    both = rejected_tokens > 0 and not chosen_only
    # A alone is no reason to compute the rejected half: it is scored once, in the chosen one.
    first_scored = max(prompt, 1)
    if mode != "shared" or not both:
        documents = [_Document(chosen, 0, first_scored, chosen_bounds, chosen_regions)]
        if both:
            rejected = np.concatenate((pair.prompt, pair.rejected))
            documents.append(_Document(rejected, 0, max(shared, 1), rejected_bounds, rejected_regions))
        return documents
    branch = np.concatenate((pair.replacement, *((pair.suffix,) if pair.suffix_kept else ())))
    branch_from = max(shared, 1)
    documents = [
        _Document(chosen[:shared], 0, first_scored, chosen_bounds, chosen_regions),
        _Document(chosen[shared:], shared, branch_from, chosen_bounds, chosen_regions),
        _Document(branch, shared, branch_from, rejected_bounds, rejected_regions),
    ]
    return [d for d in documents if len(d.tokens)]


def _longest_first(costs: Sequence[int]) -> list[int]:
    return sorted(range(len(costs)), key=lambda i: (-costs[i], i))


def _fill(documents: Sequence[list[_Document]], budget: int, *, padded: bool) -> list[list[int]]:
    """First fit, longest first: members of each batch in the order of the pairs."""
    costs = [sum(len(d.tokens) for d in docs) for docs in documents]
    widths = [max((len(d.tokens) for d in docs), default=0) for docs in documents]
    batches: list[list[int]] = []
    used: list[int] = []
    for i in _longest_first(widths if padded else costs):
        # Widths fall, so a padded batch is as wide as the pair that opened it.
        cost = (lambda b: widths[batches[b][0]] * len(documents[i])) if padded else (lambda b: costs[i])  # noqa: B023
        fit = next((b for b in range(len(batches)) if used[b] + cost(b) <= budget), None)
        if fit is None:
            fit = len(batches)
            batches.append([])
            used.append(0)
        batches[fit].append(i)
        used[fit] += cost(fit)
    return sorted(sorted(batch) for batch in batches)


@dataclass
class _Scored:
    """Collects the scored tokens of one batch."""

    predictors: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    owners: list[np.ndarray] = field(default_factory=list)

    def add(self, document: _Document, pair: int, offset: int, shared_stop: int) -> None:
        """``offset``: flat position of the document's first token; ``shared_stop``: of the end of its shared part."""
        sequence = np.arange(document.skipped, document.skipped + len(document.tokens))
        sequence = sequence[sequence >= document.scored_from]
        inside = sequence - document.skipped
        # The first token of a branch is predicted by the last shared position, not by its neighbour in the row.
        self.predictors.append(np.where(inside > 0, offset + inside - 1, shared_stop - 1))
        self.targets.append(document.tokens[inside])
        regions = np.asarray(document.regions)[np.searchsorted(document.bounds, sequence, side="right")]
        self.owners.append(pair * len(REGIONS) + regions)

    def tensors(self, pairs: int) -> dict[str, Any]:
        predictors, targets, owners = (
            np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
            for parts in (self.predictors, self.targets, self.owners)
        )
        is_prefix = owners % len(REGIONS) == PREFIX
        order = np.argsort(~is_prefix, kind="stable")
        counts = np.bincount(owners, minlength=pairs * len(REGIONS)).reshape(pairs, len(REGIONS))
        return {
            "predictors": torch.from_numpy(predictors[order]),
            "targets": torch.from_numpy(targets[order]),
            "owners": torch.from_numpy(owners[order]),
            "prefix_scored": int(is_prefix.sum()),
            "counts": torch.from_numpy(counts.astype(np.int32)),
        }


def _row_batch(
    pairs: Sequence[PreferencePair], documents: Sequence[list[_Document]], members: list[int]
) -> PackedBatch:
    scored, segments, ids, positions, offset = _Scored(), [], [], [], 0
    for local, i in enumerate(members):
        base = offset
        for document in documents[i]:
            shared = (base, base + document.skipped) if document.skipped else (offset, offset)
            segments.append(Segment(offset, offset + len(document.tokens), *shared))
            scored.add(document, local, offset, shared[1])
            ids.append(document.tokens)
            positions.append(np.arange(document.skipped, document.skipped + len(document.tokens)))
            offset += len(document.tokens)
    return PackedBatch(
        pairs=tuple(members),
        input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64))[None],
        attention_mask=None,
        layout=RowLayout(tuple(segments)),
        **scored.tensors(len(members)),
    )


def _padded_batch(
    pairs: Sequence[PreferencePair], documents: Sequence[list[_Document]], members: list[int]
) -> PackedBatch:
    rows = [(local, document) for local, i in enumerate(members) for document in documents[i]]
    width = max(len(document.tokens) for _, document in rows)
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    scored = _Scored()
    for row, (local, document) in enumerate(rows):
        ids[row, : len(document.tokens)] = document.tokens
        mask[row, : len(document.tokens)] = 1
        scored.add(document, local, row * width, 0)
    return PackedBatch(
        pairs=tuple(members),
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(width).expand(len(rows), width),
        attention_mask=torch.from_numpy(mask),
        layout=None,
        **scored.tensors(len(members)),
    )
