"""A rank's passes through the model: gradients of its pairs, and scores under the reference or the EMA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from contracts.pair import PreferencePair, ReferenceScore, supervised
from learner.loss.objectives import Objective, Scores
from learner.loss.reference import Reference
from learner.metrics import Totals
from learner.model.packing import Mode, PackedBatch, pack

_TWO = np.zeros(2, np.int32)
FILLER = PreferencePair(_TWO, _TWO, 0, 2, _TWO, suffix_kept=False)
FILLER_SCORE = ReferenceScore(-1, np.zeros(5, np.float32))
"""What a rank computes, with weight zero, when the others have more batches than it: collectives need all ranks."""


class Passes:
    """Every method but ``pack`` is called on all ranks together: each makes as many passes as the one with most."""

    def __init__(
        self, engine: Any, objective: Objective, mode: Mode, tokens_per_batch: int, device: torch.device
    ) -> None:
        """``engine``: an initialized DeepSpeedEngine over a ``Scorer``."""
        self._engine, self._objective, self._device = engine, objective, device
        self._mode, self._tokens_per_batch = mode, tokens_per_batch
        (self.filler,) = pack([FILLER], 1, mode)

    def pack(self, pairs: Sequence[PreferencePair]) -> list[PackedBatch]:
        """The batches of the objective's passes over ``pairs``, on the host."""
        return pack(pairs, self._tokens_per_batch, self._mode, chosen_only=not self._objective.needs_rejected)

    def accumulate_gradients(
        self, batches: list[PackedBatch], references: Sequence[ReferenceScore | None], global_pairs: int
    ) -> Totals:
        """Forward and backward of all batches.

        Args:
            batches: what ``pack`` made of this rank's pairs.
            references: of those pairs; unused by objectives without a reference.
            global_pairs: size of the global batch, by which the loss is divided.
        """
        totals = Totals(self._device)
        passes = self._most(len(batches))
        for number in range(passes):
            self._engine.set_gradient_accumulation_boundary(number == passes - 1)
            real = number < len(batches)
            batch = (batches[number] if real else self.filler).to(self._device)
            logps = self._engine(batch)
            reference = self._reference_rows(batch, references if real else [FILLER_SCORE], self._objective)
            loss, metrics = self._objective.fn(Scores(logps, batch.counts, reference))
            if not real:
                loss, metrics = logps.sum() * 0.0, {name: torch.zeros_like(v) for name, v in metrics.items()}
            # DeepSpeed averages gradients over the ranks; the global batch counts every pair once.
            self._engine.backward(loss * (dist.get_world_size() / global_pairs), scale_wrt_gas=False)
            totals.add(loss, metrics, batch.tokens if real else 0, batch.pairs if real else ())
        return totals

    @torch.no_grad()
    def score_under_reference(
        self, pairs: Sequence[PreferencePair], reference: Reference
    ) -> list[ReferenceScore | None]:
        """Scores of the pairs that have none of the reference's version; None for the others."""
        fresh: list[ReferenceScore | None] = [None] * len(pairs)
        if not self._objective.needs_reference:
            return fresh
        version = reference.version
        wanted = [i for i, p in enumerate(pairs) if p.reference is None or p.reference.version != version]
        batches = self.pack([pairs[i] for i in wanted])
        passes = self._most(len(batches))
        if passes == 0:
            return fresh
        with reference.active(), self._evaluating():
            for number in range(passes):
                real = number < len(batches)
                batch = batches[number] if real else self.filler
                logps = self._engine.module(batch.to(self._device))
                if real:
                    for i, row in zip(batch.pairs, logps.float().cpu().numpy(), strict=True):
                        fresh[wanted[i]] = ReferenceScore(version, row)
        return fresh

    @torch.no_grad()
    def evaluate(
        self,
        pairs: Sequence[PreferencePair],
        references: Sequence[ReferenceScore | None],
        objective: Objective,
        global_pairs: int,
    ) -> dict[str, float]:
        """Loss and metrics of pairs that are not trained on, means over all ranks' ``global_pairs``.

        Args:
            references: of the pairs; unused by an objective without a reference.
            objective: may be another than that of the steps.
        """
        totals = Totals(self._device)
        batches = pack(pairs, self._tokens_per_batch, self._mode, chosen_only=not objective.needs_rejected)
        with self._evaluating():
            for number in range(self._most(len(batches))):
                real = number < len(batches)
                batch = (batches[number] if real else self.filler).to(self._device)
                logps = self._engine.module(batch)
                reference = self._reference_rows(batch, references if real else [FILLER_SCORE], objective)
                loss, metrics = objective.fn(Scores(logps, batch.counts, reference))
                weight = float(real)
                totals.add(loss * weight, {n: v * weight for n, v in metrics.items()}, batch.tokens if real else 0)
        return totals.means(global_pairs)

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [tokens - 1] for each sequence: log-probability in nats of every token but the first, under the
        weights that the module holds. The same sequences on every rank."""
        records = [supervised(i, np.array(s[:1], np.int32), np.array(s[1:], np.int32)) for i, s in enumerate(sequences)]
        with self._evaluating():
            return [
                self._engine.module(batch.to(self._device), by_token=True).float().cpu().numpy()
                for record in records
                for batch in pack([record], 1, self._mode, chosen_only=True)
            ]

    def _reference_rows(
        self, batch: PackedBatch, references: Sequence[ReferenceScore | None], objective: Objective
    ) -> Tensor | None:
        """float32 [pairs, 5]; None for objectives without a reference."""
        if not objective.needs_reference:
            return None
        rows = [score.logps for i in batch.pairs if (score := references[i])]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Dropout off for the time of the context."""
        self._engine.module.eval()
        try:
            yield
        finally:
            self._engine.module.train()

    def _most(self, count: int) -> int:
        """The largest ``count`` of all ranks."""
        counts = torch.tensor([count], device=self._device)
        dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return int(counts)
