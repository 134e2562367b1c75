"""A replay gives the batches that were recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.sources.replay import ReplaySource
from cluster.storage.recording import PairRecorder, read_batches
from contracts.pair import ReferenceScore
from support.pairs import generated


def test_a_replay_gives_the_recorded_batches_step_by_step(tmp_path: Path) -> None:
    recorder = PairRecorder(tmp_path / "pairs.parquet")
    for step in range(3):
        recorder.write(step, [generated(2 * step), generated(2 * step + 1)])
    recorder.close()
    source = ReplaySource(read_batches(tmp_path / "pairs.parquet"))
    for step in (0, 1, 2, 1):
        pairs = source.next(step).pairs
        assert [pair.index for pair in pairs] == [2 * step, 2 * step + 1]
        assert pairs[0].rejected.tolist() == [3, 9, 8, 5]
    assert source.next(0).keys is None
    assert source.stepped(1, source.next(0), [None, None]) == {}


def test_a_recorded_pair_that_comes_again_brings_its_reference_score_along() -> None:
    source = ReplaySource([[generated(0), generated(1)], [generated(1), generated(2)]])
    score = ReferenceScore(3, np.ones(5, np.float32))
    source.stepped(1, source.next(0), [None, score])
    assert [pair.reference for pair in source.next(1).pairs] == [score, None]
