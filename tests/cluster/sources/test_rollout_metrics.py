"""What the buffer's counters say of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from buffer.client import Draw
from buffer.messages import BufferStats
from cluster.sources.rollout_metrics import WITHOUT_A_PAIR_STEPS, DrawMetrics, UsablePairs
from contracts.pair import PreferencePair, as_token_ids


def draw(stats: BufferStats, *versions: int) -> Draw:
    pairs = [
        PreferencePair(
            prompt=as_token_ids([1]),
            chosen=as_token_ids([3, 4]),
            start=0,
            end=1,
            replacement=as_token_ids([9]),
            suffix_kept=True,
            versions=as_token_ids([version]),
        )
        for version in versions
    ]
    numbers = np.arange(len(pairs))
    return Draw(pairs, numbers, numbers, numbers, numbers, stats)


def test_a_draw_s_age_and_epoch():
    stats = BufferStats(inserted=7, identical=5, identical_fraction=0.75, mark=12)
    metrics = DrawMetrics(batch_size=2, indices_per_epoch=10).of(draw(stats, 0, 1), step=3)
    assert (metrics["pairs/identical_fraction"], metrics["epoch"]) == (0.75, 1.2)
    assert (metrics["age/steps_mean"], metrics["age/steps_max"]) == (2.5, 3.0)


def test_without_any_outcome_there_is_no_share():
    metrics = DrawMetrics(batch_size=2, indices_per_epoch=10).of(draw(BufferStats(), 0), step=0)
    assert math.isnan(metrics["pairs/identical_fraction"])


ENOUGH = WITHOUT_A_PAIR_STEPS * 4


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        (BufferStats(identical=ENOUGH), "equal the originals"),
        (BufferStats(discarded=ENOUGH), "after_eos reject: the last 80 segments"),
        (BufferStats(failed=ENOUGH), "refused the last 80 requests"),
        (BufferStats(identical=ENOUGH - 1), None),
        (BufferStats(identical=ENOUGH, inserted=1), None),
    ],
)
def test_a_run_without_a_usable_pair_is_told_why(stats: BufferStats, reason: str | None):
    told = UsablePairs(inserts_per_step=4, after_eos="reject").lack(stats)
    assert (told is None) == (reason is None)
    assert reason is None or (told and reason in told and "\n" not in told)


def test_pairs_that_stop_coming_after_thousands_of_steps_are_noticed_too():
    usable = UsablePairs(inserts_per_step=4, after_eos="drop")
    assert usable.lack(BufferStats(inserted=9000, identical=500)) is None
    assert usable.lack(BufferStats(inserted=9000, identical=500 + ENOUGH - 1)) is None
    assert usable.lack(BufferStats(inserted=9001, identical=500 + ENOUGH)) is None
    told = usable.lack(BufferStats(inserted=9001, identical=500 + 2 * ENOUGH))
    assert told and "the last 80 segments all equal the originals" in told
