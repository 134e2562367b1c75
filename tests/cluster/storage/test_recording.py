"""Recorded pairs come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage.recording import PairRecorder, read_batches
from contracts.errors import UserError
from contracts.pair import PreferencePair, as_token_ids, offline_pair


def written(index: int) -> PreferencePair:
    return PreferencePair(
        prompt=as_token_ids([1, 2]),
        chosen=as_token_ids([3, 4, 5]),
        start=1,
        end=2,
        replacement=as_token_ids([9, 8]),
        suffix_kept=True,
        index=index,
        row=7,
        actor="actor-0",
        versions=as_token_ids([4, 5]),
        mean_logprob=-0.25,
        ended=False,
    )


def test_batches_come_back_equal_and_in_order(tmp_path: Path) -> None:
    given = offline_pair(3, as_token_ids([1]), as_token_ids([2, 3]), as_token_ids([2, 4]))
    recorder = PairRecorder(tmp_path / "pairs.parquet")
    recorder.write(0, [written(0), written(1)])
    recorder.write(1, [given])
    recorder.close()
    batches = read_batches(tmp_path / "pairs.parquet")
    assert [[p.index for p in batch] for batch in batches] == [[0, 1], [3]]
    again = batches[0][0]
    assert again.rejected.tolist() == written(0).rejected.tolist() == [3, 9, 8, 5]
    assert again.versions.tolist() == [4, 5]
    assert again.version == 4
    assert again.mean_logprob == -0.25
    assert np.isnan(batches[1][0].mean_logprob)
    assert batches[1][0].rejected.tolist() == [2, 4]


def test_files_that_are_no_recording_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    for name, words in (("other.parquet", "no column"), ("text.parquet", "can't be read"), ("none.parquet", "can't")):
        with pytest.raises(UserError, match=words) as refusal:
            read_batches(tmp_path / name)
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)
