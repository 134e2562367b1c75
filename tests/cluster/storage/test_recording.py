"""Recorded pairs come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage.recording import SCHEMA, PairRecorder, read_batches
from contracts.errors import UserError
from contracts.pair import as_token_ids, offline_pair
from contracts.version import VERSION
from support.pairs import generated


def test_batches_come_back_equal_and_in_order(tmp_path: Path) -> None:
    given = offline_pair(3, as_token_ids([1]), as_token_ids([2, 3]), as_token_ids([2, 4]))
    recorder = PairRecorder(tmp_path / "pairs.parquet")
    recorder.write(0, [generated(0), generated(1)])
    recorder.write(1, [given])
    recorder.close()
    batches = read_batches(tmp_path / "pairs.parquet")
    assert [[p.index for p in batch] for batch in batches] == [[0, 1], [3]]
    again = batches[0][0]
    assert again.rejected.tolist() == generated(0).rejected.tolist() == [3, 9, 8, 5]
    assert again.versions.tolist() == [4, 5]
    assert again.version == 4
    assert again.mean_logprob == -0.25
    assert np.isnan(batches[1][0].mean_logprob)
    assert batches[1][0].rejected.tolist() == [2, 4]


def test_files_that_are_no_recording_are_rejected_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    for name, words in (("other.parquet", "no column"), ("text.parquet", "can't be read"), ("none.parquet", "can't")):
        with pytest.raises(UserError, match=words) as caught:
            read_batches(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recording_says_its_format_and_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    PairRecorder(path).close()
    metadata = pq.read_schema(path).metadata
    assert (metadata[b"sapo.format"], metadata[b"sapo.version"]) == (b"1", VERSION.encode())


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        # What versions without a format number wrote.
        (None, ": has no format number, so another version wrote it; "),
        ({"sapo.format": "2", "sapo.version": "9"}, ": has format 2, so another version wrote it; "),
    ],
)
def test_a_recording_of_another_format_is_rejected_in_one_line(
    tmp_path: Path, metadata: dict[str, str] | None, words: str
) -> None:
    path = tmp_path / "pairs.parquet"
    recorder = PairRecorder(path)
    recorder.write(0, [generated(0)])
    recorder.close()
    pq.write_table(pq.read_table(path).cast(SCHEMA.with_metadata(metadata)), path)
    with pytest.raises(UserError) as caught:
        read_batches(path)
    assert str(caught.value).startswith(f"data.path {path}{words}")
    assert "\n" not in str(caught.value)
