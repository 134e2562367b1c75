"""A snapshot's files: everything comes back, as plain data, and other formats are rejected in one line."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.index import IndexState
from buffer.leases import LedgerState
from buffer.messages import CoordinatorState, Drawing, HeldRow, InsertRow, Outcome
from buffer.rate_limiter import LimiterState
from buffer.slot_layout import SlotLayout
from buffer.snapshot import (
    ARRAYS_FILE,
    FORMAT,
    STATE_FILE,
    read_payloads,
    read_state,
    require_shards,
    shard_file,
    write_payloads,
    write_state,
)
from contracts.errors import UserError

counts = st.integers(0, 2**53 + 1)
payloads = st.binary(max_size=9)


@st.composite
def held_rows(draw) -> HeldRow:
    outcome = draw(st.sampled_from(Outcome))
    payload = draw(payloads) if outcome is Outcome.INSERTED else None
    return HeldRow(InsertRow(draw(counts), outcome, payload, draw(st.integers(-1, 2**40))), draw(counts))


@st.composite
def states(draw) -> CoordinatorState:
    capacity = draw(st.integers(1, 5))

    def per_slot(dtype: type) -> np.ndarray:
        numbers = draw(st.lists(st.integers(0, 2**31 - 1), min_size=capacity, max_size=capacity))
        return np.array(numbers).astype(dtype)

    return CoordinatorState(
        index=IndexState(
            draw(counts), draw(counts), per_slot(np.int32), per_slot(np.int64), per_slot(np.int64), per_slot(bool)
        ),
        ledger=LedgerState(draw(counts), draw(st.lists(counts, max_size=4))),
        limiter=LimiterState(draw(counts), draw(counts), draw(counts), draw(st.integers(-9, 9))),
        held=draw(st.lists(held_rows(), max_size=4)),
        visible=draw(counts),
        counts={outcome: draw(counts) for outcome in Outcome},
        drawing=Drawing(draw(counts), draw(counts), draw(st.none() | st.floats(0, 1))),
        duplicates=draw(counts),
        generated_tokens=draw(counts),
        layout=SlotLayout(draw(counts), draw(counts)),
    )


def state_of(shards: int = 1) -> CoordinatorState:
    """The state of a buffer of one slot that holds nothing."""
    return CoordinatorState(
        index=IndexState(0, 0, np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, bool)),
        ledger=LedgerState(0, []),
        limiter=LimiterState(0, 0, 0, 0),
        held=[HeldRow(InsertRow(4, Outcome.INSERTED, b"payload", 2), 3)],
        visible=0,
        counts={},
        drawing=Drawing(),
        duplicates=0,
        generated_tokens=0,
        layout=SlotLayout(shards, 1),
    )


def parts(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


@given(state=states())
def test_the_coordinators_state_comes_back_exactly(state):
    with tempfile.TemporaryDirectory() as name:
        write_state(Path(name), state)
        read = read_state(Path(name))
    before, after = parts(state), parts(read)
    index_before, index_after = parts(before.pop("index")), parts(after.pop("index"))
    assert after == before
    assert all(row.row.outcome in Outcome for row in read.held)
    for field, value in index_before.items():
        np.testing.assert_array_equal(index_after[field], value)
        assert getattr(index_after[field], "dtype", None) == getattr(value, "dtype", None)


@given(written=st.dictionaries(st.integers(0, 2**40), payloads, max_size=6), divisor=st.integers(1, 3))
def test_a_shards_payloads_come_back_and_only_those_that_are_wanted(written, divisor):
    with tempfile.TemporaryDirectory() as name:
        path = shard_file(Path(name) / "new", 0)
        write_payloads(path, written)
        require_shards(path.parent, 1, "")
        read = read_payloads(path, lambda slot: slot % divisor == 0)
    assert read == {slot: payload for slot, payload in written.items() if slot % divisor == 0}


def test_files_name_no_module_and_no_class(tmp_path):
    write_state(tmp_path, state_of())
    write_payloads(shard_file(tmp_path, 0), {7: b"payload"})
    data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    names = ["buffer", "numpy", *(cls.__name__ for cls in (CoordinatorState, InsertRow, HeldRow, IndexState))]
    assert not [name for name in names if name.encode() in data]
    with np.load(tmp_path / ARRAYS_FILE) as arrays:
        assert {arrays[name].dtype.kind for name in arrays} == {"i", "u", "b"}


def test_a_snapshot_says_its_format_and_who_wrote_it(tmp_path):
    write_state(tmp_path, state_of())
    numbers = json.loads((tmp_path / STATE_FILE).read_text())
    assert numbers["format"] == FORMAT
    assert numbers["program"]


def one_line(error: pytest.ExceptionInfo[UserError]) -> bool:
    return len(str(error.value).splitlines()) == 1


def test_a_snapshot_from_before_formats_had_numbers_is_rejected_in_one_line(tmp_path):
    (tmp_path / "front.pkl").write_bytes(b"not read")
    with pytest.raises(UserError, match=r"snapshot of an earlier format \(front.pkl\).* start a new run") as error:
        read_state(tmp_path)
    assert one_line(error)


def test_a_snapshot_of_a_newer_format_is_rejected_in_one_line(tmp_path):
    write_state(tmp_path, state_of())
    numbers = json.loads((tmp_path / STATE_FILE).read_text())
    (tmp_path / STATE_FILE).write_text(json.dumps({"format": FORMAT + 1, "program": "9.9", "other": numbers}))
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}, .* reads format {FORMAT} alone") as error:
        read_state(tmp_path)
    assert one_line(error)


@pytest.mark.parametrize("missing", [STATE_FILE, ARRAYS_FILE])
def test_a_folder_without_a_whole_snapshot_is_rejected(tmp_path, missing):
    write_state(tmp_path, state_of())
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"no snapshot of a replay buffer: {missing} is missing"):
        read_state(tmp_path)


def test_shards_that_are_missing_short_or_of_another_format_are_rejected(tmp_path):
    path = shard_file(tmp_path, 1)
    for number in (0, 1):
        write_payloads(shard_file(tmp_path, number), {7: b"payload"})
    require_shards(tmp_path, 2, "why")
    whole = path.read_bytes()
    for short in (whole[:-1], whole[:5], b""):
        path.write_bytes(short)
        with pytest.raises(UserError, match=r"shard-0001.bin ends early: why"):
            require_shards(tmp_path, 2, "why")
    for other in (b"otherone" + whole[8:], whole[:8] + struct.pack("<I", FORMAT + 1) + whole[12:]):
        path.write_bytes(other)
        with pytest.raises(UserError, match=f"shard-0001.bin: not a shard of a snapshot of format {FORMAT}"):
            require_shards(tmp_path, 2, "why")
    path.unlink()
    with pytest.raises(UserError, match=r"shard-0001.bin is missing: why"):
        require_shards(tmp_path, 2, "why")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / STATE_FILE).write_text("{}"),
        lambda folder: (folder / STATE_FILE).write_text("[]"),
        lambda folder: (folder / STATE_FILE).write_text('{"format": 1}'),
        lambda folder: (folder / STATE_FILE).write_text('{"format": '),
        lambda folder: (folder / ARRAYS_FILE).write_bytes(b"PK"),
        lambda folder: (folder / ARRAYS_FILE).write_bytes(b""),
    ],
)
def test_a_damaged_snapshot_is_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    (tmp_path / STATE_FILE).write_text("{}")
    (tmp_path / ARRAYS_FILE).write_bytes(b"")
    damage(tmp_path)
    with pytest.raises(UserError) as told:
        read_state(tmp_path)
    assert str(tmp_path) in str(told.value) and "\n" not in str(told.value)
