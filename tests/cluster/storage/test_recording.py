"""Recorded pairs come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.storage.recording import SCHEMA, PairRecorder, read_batches
from contracts.errors import UserError
from contracts.pair import as_token_ids, offline_pair
from contracts.version import VERSION
from support.pairs import generated


def test_batches_come_back_equal_and_in_order(tmp_path: Path) -> None:
    given = offline_pair(3, as_token_ids([1]), as_token_ids([2, 3]), as_token_ids([2, 4]))
    recorder = PairRecorder(tmp_path / "pairs.arrow")
    recorder.write(0, [generated(0), generated(1)])
    recorder.write(1, [given])
    recorder.close()
    batches = read_batches(tmp_path / "pairs.arrow")
    assert [[p.index for p in batch] for batch in batches] == [[0, 1], [3]]
    again = batches[0][0]
    assert again.rejected.tolist() == generated(0).rejected.tolist() == [3, 9, 8, 5]
    assert again.versions.tolist() == [4, 5]
    assert again.version == 4
    assert again.mean_logprob == -0.25
    assert np.isnan(batches[1][0].mean_logprob)
    assert batches[1][0].rejected.tolist() == [2, 4]


def stream(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def recorded(path: Path, *steps: int, first_step: int = 0) -> PairRecorder:
    recorder = PairRecorder(path, first_step)
    for step in steps:
        recorder.write(step, [generated(2 * step), generated(2 * step + 1)])
    return recorder


def indices(path: Path) -> list[list[int]]:
    return [[pair.index for pair in batch] for batch in read_batches(path)]


def test_files_that_are_no_recording_are_rejected_by_name(tmp_path: Path) -> None:
    stream(tmp_path / "other.arrow", pa.table({"a": [1]}))
    (tmp_path / "text.arrow").write_text("hello")
    (tmp_path / "empty.arrow").touch()
    for name, words in (
        ("other.arrow", "no column"),
        ("text.arrow", "can't be read"),
        ("empty.arrow", "can't be read"),
        ("none.arrow", "can't be read"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_batches(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recording_says_its_format_and_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "pairs.arrow"
    PairRecorder(path).close()
    metadata = pa.ipc.open_stream(path.read_bytes()).schema.metadata
    assert (metadata[b"sapo.format"], metadata[b"sapo.version"]) == (b"2", VERSION.encode())


def test_a_killed_recording_is_readable_up_to_its_last_whole_batch(tmp_path: Path) -> None:
    path = tmp_path / "pairs.arrow"
    recorded(path, 0, 1, 2)  # never closed
    assert indices(path) == [[0, 1], [2, 3], [4, 5]]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert indices(path) == [[0, 1], [2, 3]]


def test_a_resumed_run_goes_on_in_its_recording_without_a_double(tmp_path: Path) -> None:
    path = tmp_path / "pairs.arrow"
    recorded(path, 0, 1, 2, 3)
    recorded(path, 2, 3, first_step=2).close()
    assert indices(path) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    recorded(path, 0).close()
    assert indices(path) == [[0, 1]], "a new run's recording has nothing of an old one"
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.arrow"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        # What versions without a format number wrote.
        (None, ": has no format number, so another version wrote it; "),
        ({"sapo.format": "1", "sapo.version": "9"}, ": has format 1, so another version wrote it; "),
    ],
)
def test_a_recording_of_another_format_is_rejected_in_one_line(
    tmp_path: Path, metadata: dict[str, str] | None, words: str
) -> None:
    path = tmp_path / "pairs.arrow"
    recorder = PairRecorder(path)
    recorder.write(0, [generated(0)])
    recorder.close()
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    stream(path, table.cast(SCHEMA.with_metadata(metadata)))
    with pytest.raises(UserError) as caught:
        read_batches(path)
    assert str(caught.value).startswith(f"data.path {path}{words}")
    assert "\n" not in str(caught.value)
