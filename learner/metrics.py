"""A step's metrics: summed over a rank's pairs, then reduced to means over the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from learner.loss.objectives import Metrics


class Totals:
    """Sums over the pairs of one rank, float64 on its device."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = 0
        self._metrics: dict[str, Tensor | float] = {}

    def add(self, loss: Tensor, metrics: Metrics, tokens: int) -> None:
        """Count a batch in.

        Args:
            loss: scalar, summed over the batch's pairs.
            metrics: each [pairs].
            tokens: tokens that the model computed.
        """
        self._loss += loss.detach()
        self._tokens += tokens
        for name, values in metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + values.double().sum()

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
