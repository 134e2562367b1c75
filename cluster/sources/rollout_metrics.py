"""What the drawn pairs and the buffer's counters say: metrics of a draw, and when there is nothing left to hope for."""

from __future__ import annotations

import numpy as np

from buffer.client import Draw
from buffer.messages import BufferStats
from cluster.reports.pair_quality import pair_quality
from cluster.sources.base import Metrics

WITHOUT_A_PAIR_STEPS = 20
"""Steps' worth of segments without one usable pair after which the run ends."""


class DrawMetrics:
    """Turns draws into metrics."""

    def __init__(self, batch_size: int, indices_per_epoch: int) -> None:
        self._batch, self._indices_per_epoch = batch_size, indices_per_epoch

    def of(self, draw: Draw, step: int) -> Metrics:
        """Metrics of a draw for optimizer step ``step`` (from 0)."""
        stats = draw.stats
        age = step - np.array([p.version for p in draw.pairs])
        return {
            "pairs/inserted": stats.inserted,
            "pairs/drawn": stats.draws * self._batch,
            "pairs/identical_fraction": stats.identical_fraction,
            "pairs/identical": stats.identical,
            "pairs/discarded": stats.discarded,
            "pairs/failed": stats.failed,
            "staleness/mean": float(draw.staleness.mean()),
            "staleness/max": float(draw.staleness.max()),
            "age/steps_mean": float(age.mean()),
            "age/steps_max": float(age.max()),
            "age/pairs_mean": float(draw.ages.mean()),
            "draws/mean": float(draw.draw_counts.mean()),
            "draws/max": float(draw.draw_counts.max()),
            "buffer/size": stats.size,
            "buffer/blocked_lease_s": stats.blocked_lease_s,
            "buffer/blocked_draw_s": stats.blocked_draw_s,
            "tokens/generated": stats.generated_tokens,
            "epoch": stats.mark / self._indices_per_epoch,
        } | pair_quality(draw.pairs)


class UsablePairs:
    """Watches that segments still give pairs: data may be memorised, or every segment may end early, from the start or
    after thousands of steps."""

    def __init__(self, inserts_per_step: int, after_eos: str) -> None:
        self._enough, self._after_eos = WITHOUT_A_PAIR_STEPS * inserts_per_step, after_eos
        self._last = BufferStats()
        """When a pair was last seen to come in."""

    def lack(self, stats: BufferStats) -> str | None:
        """Why the run should end, in one line; None while there is hope."""
        if stats.inserted != self._last.inserted:
            self._last = stats
        identical, discarded, failed = (
            getattr(stats, name) - getattr(self._last, name) for name in ("identical", "discarded", "failed")
        )
        wasted = identical + discarded + failed
        if wasted < self._enough:
            return None
        if identical >= max(discarded, failed):
            return (
                f"generation: the last {wasted} segments all equal the originals: there is nothing to prefer; the "
                "model has memorised the data: train it less, raise generation.temperature, or use other data"
            )
        if discarded >= failed:
            return (
                f"generation.after_eos {self._after_eos}: the last {wasted} segments all end the response early and "
                "are discarded; set drop"
            )
        return f"generation: the engine refused the last {wasted} requests; the reasons are in the actors' log"
