"""The reference of preference losses: a copy of weights on the shards, kept or renewed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learner.config import ReferenceConfig
from learner.zero.ema import Ema
from learner.zero.shards import Shards


class Reference:
    """What the policy is compared with.

    ``initial``: the frozen start. ``ema`` / ``policy``: a copy of EMA / policy, renewed every ``interval`` steps; the
    public code of the paper renews every 108. The copy is kept in the model's dtype: a bf16 run compares with what a
    bf16 model computes. With LoRA, ``initial`` is the model with its adapters off and takes no memory.
    """

    def __init__(
        self, config: ReferenceConfig, module: nn.Module, shards: Shards, ema: Ema, dtype: torch.dtype
    ) -> None:
        """Takes the first copy: made before the first step."""
        self._config, self._shards, self._ema = config, shards, ema
        self.version = 0
        """Optimizer step of its last renewal: the key under which log-probabilities are cached."""
        self._adapters_off = getattr(module, "disable_adapter", None) if config.mode == "initial" else None
        needs_copy = config.mode != "none" and self._adapters_off is None
        self.values: list[Tensor] = shards.copy(dtype) if needs_copy else []

    def renew_if_due(self, step: int) -> None:
        """Renew the copy when its interval is over; ``step`` optimizer steps are done."""
        if self._config.mode in ("ema", "policy") and step % self._config.interval == 0:
            self._take(self._ema.values if self._config.mode == "ema" else self._shards.masters, step)

    def restore(self, values: list[Tensor], version: int) -> None:
        """Go on with a copy that was saved."""
        self._take(values, version)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The module computes with the reference's weights; all ranks together."""
        if self._adapters_off is not None:
            with self._adapters_off():
                yield
        else:
            with self._shards.holding(self.values):
                yield

    @torch.no_grad()
    def _take(self, values: list[Tensor], version: int) -> None:
        for kept, new in zip(self.values, values, strict=True):
            kept.copy_(new)
        self.version = version
