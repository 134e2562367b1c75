"""A step's metrics: summed over a rank's pairs, then reduced to means over the global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from learner.loss.objectives import Metrics

MARGIN = "rewards/margins"


class Totals:
    """Sums over the pairs of one rank, float64 on its device."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = 0
        self._metrics: dict[str, Tensor | float] = {}
        self._margins: list[tuple[Sequence[int], Tensor]] = []

    def add(self, loss: Tensor, metrics: Metrics, tokens: int, pairs: Sequence[int] = ()) -> None:
        """Count a batch in.

        Args:
            loss: scalar, summed over the batch's pairs.
            metrics: each [pairs].
            tokens: tokens that the model computed.
            pairs: which of the rank's pairs these are, in the order of the metrics; none of a filler.
        """
        self._loss += loss.detach()
        self._tokens += tokens
        for name, values in metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + values.double().sum()

        if pairs and MARGIN in metrics:
            self._margins.append((pairs, metrics[MARGIN].detach()))

    def margins(self, count: int) -> list[float | None]:
        """Reward margin of each of the rank's ``count`` pairs; None where there is none, or it is not finite."""
        by_pair: list[float | None] = [None] * count
        for pairs, values in self._margins:
            for pair, value in zip(pairs, values.tolist(), strict=True):
                by_pair[pair] = value if math.isfinite(value) else None
        return by_pair

    def means(self, global_pairs: int) -> dict[str, float]:
        """Over the global batch, in one collective: all ranks together."""
        names = sorted(self._metrics)
        tokens = torch.full_like(self._loss, self._tokens)
        values = torch.stack([self._loss, tokens, *(torch.as_tensor(self._metrics[name]) for name in names)])
        dist.all_reduce(values)
        loss, all_tokens, *rest = values.tolist()
        return {"loss": loss / global_pairs, "tokens/trained": all_tokens} | {
            name: value / global_pairs for name, value in zip(names, rest, strict=True)
        }
