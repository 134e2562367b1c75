"""The reference of preference losses: a copy of weights on the shards, and the log-probabilities it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learner.config import ReferenceConfig
from learner.zero.ema import MovingAverage
from learner.zero.shards import Shards


class Reference:
    """What the policy is compared with.

    ``initial``: the frozen start. ``ema`` / ``policy``: a copy of average / policy, renewed every ``interval`` steps;
    the public code of the paper renews every 108. The copy is kept in the model's dtype: a bf16 run compares with what
    a bf16 model computes. With LoRA, ``initial`` is the model with its adapters off and takes no memory.
    """

    def __init__(self, config: ReferenceConfig, shards: Shards, average: MovingAverage, dtype: torch.dtype) -> None:
        self._config, self._shards, self._average, self._dtype = config, shards, average, dtype
        self.version = 0
        """Optimizer step of its last renewal: the key under which log-probabilities are cached."""
        self.values: list[Tensor] = []

    def start(self, module: nn.Module) -> None:
        """Take the first copy, before the first step."""
        self._adapters_off = getattr(module, "disable_adapter", None) if self._config.mode == "initial" else None
        if self._config.mode != "none" and self._adapters_off is None:
            self.values = self._shards.copy(self._dtype)

    def stepped(self, step: int) -> None:
        """Renew the copy when its interval is over; ``step`` optimizer steps are done."""
        if self._config.mode in ("ema", "policy") and step % self._config.interval == 0:
            source = self._average.values if self._config.mode == "ema" else self._shards.masters
            for kept, new in zip(self.values, source, strict=True):
                kept.copy_(new)
            self.version = step

    @contextmanager
    def active(self) -> Iterator[None]:
        """The module computes with the reference's weights; all ranks together."""
        if self._adapters_off is not None:
            with self._adapters_off():
                yield
        else:
            with self._shards.holding(self.values):
                yield
