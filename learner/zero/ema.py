"""The exponential moving average of the policy on each rank's own shard: updated in place, without communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.zero.shards import Shards


class Ema:
    """EMA <- decay * EMA + (1 - decay) * policy after each optimizer step (SAPO, section 3.2).

    ``values``: fp32, the shapes of ``Shards.masters``, on the masters' device.
    """

    def __init__(self, shards: Shards, decay: float) -> None:
        self._shards, self._decay = shards, decay
        self.values: list[Tensor] = shards.copy()

    @torch.no_grad()
    def update(self) -> None:
        """One fused pass over the shard."""
        # lerp(a, b, 0) is a and lerp(a, b, 1) is b exactly, so decay 1 freezes and 0 follows.
        torch._foreach_lerp_(self.values, [m.data for m in self._shards.masters], 1.0 - self._decay)

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        """Go on with an EMA that was saved."""
        for kept, value in zip(self.values, values, strict=True):
            kept.copy_(value)
