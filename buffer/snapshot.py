"""The files of a snapshot: plain data with a format number, readable without this program.

``coordinator.json``  format, version of the program that wrote it, counters, limiter, ledger's mark, slot layout
``coordinator.npz``   numbers per slot, indices accounted for above the mark, outcomes that are held back
``shard-0000.bin`` …  the pairs of each shard, as ``buffer.codec`` encodes them
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from buffer.index import IndexState
from buffer.leases import LedgerState
from buffer.messages import CoordinatorState, Drawing, HeldRow, InsertRow, Outcome
from buffer.rate_limiter import LimiterState
from buffer.slot_layout import SlotLayout
from contracts.background import flush
from contracts.errors import UserError, named
from contracts.version import VERSION, validate_format

FORMAT = 1
"""Of all files of a snapshot together; a change of ``buffer.codec`` is a change of format too."""
STATE_FILE, ARRAYS_FILE = "coordinator.json", "coordinator.npz"
UNNUMBERED_FILE = "front.pkl"
"""What snapshots had before formats were numbered."""
SHARD_HEADER = struct.Struct("<8sIxxxxQQ")
"""Magic, format, pairs, bytes of their payloads. Behind it: slots int64 [pairs], lengths in bytes int64 [pairs], and
the payloads one after the other, all little-endian."""
SHARD_MAGIC = b"SAPOPAIR"


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:04d}.bin"


# ---- the coordinator ----------------------------------------------------------------------------------------------


def write_state(folder: Path, state: CoordinatorState) -> None:
    rows = [held.row for held in state.held]
    payloads = [row.payload or b"" for row in rows]
    arrays = {
        "draw_counts": state.index.draw_counts,
        "versions": state.index.versions,
        "staleness": state.index.staleness,
        "present": state.index.present,
        "done": np.array(state.ledger.done, np.int64),
        "held_index": np.array([row.index for row in rows], np.int64),
        "held_outcome": np.array([row.outcome for row in rows], np.int8),
        "held_version": np.array([row.version for row in rows], np.int64),
        "held_step": np.array([held.step for held in state.held], np.int64),
        "held_bytes": np.array([len(payload) for payload in payloads], np.int64),
        "held_payloads": np.frombuffer(b"".join(payloads), np.uint8),
    }
    np.savez(folder / ARRAYS_FILE, **arrays)  # type: ignore[arg-type]  # an array is taken for the options
    numbers = {
        "format": FORMAT,
        "program": VERSION,
        "next_key": state.index.next_key,
        "draws": state.index.draws,
        "mark": state.ledger.mark,
        "visible": state.visible,
        "limiter": asdict(state.limiter),
        "counts": {outcome.name.lower(): state.counts.get(outcome, 0) for outcome in Outcome},
        "last_draw": asdict(state.drawing),
        "duplicates": state.duplicates,
        "generated_tokens": state.generated_tokens,
        "layout": asdict(state.layout),
    }
    (folder / STATE_FILE).write_text(json.dumps(numbers, indent=1) + "\n")


def read_state(folder: Path) -> CoordinatorState:
    """What ``write_state`` wrote.

    Raises:
        UserError: there is no snapshot, or one of another format.
    """
    try:
        return _read_state(folder)
    except (KeyError, TypeError, ValueError, EOFError, OSError, BadZipFile) as error:
        reason = f"the buffer's snapshot is damaged ({named(error)})"
        raise UserError(f"{folder}: {reason}; resume from another checkpoint") from error


def _read_state(folder: Path) -> CoordinatorState:
    numbers = _read_numbers(folder)
    with np.load(folder / ARRAYS_FILE) as file:
        arrays = dict(file)
    return CoordinatorState(
        index=IndexState(
            next_key=numbers["next_key"],
            draws=numbers["draws"],
            draw_counts=arrays["draw_counts"],
            versions=arrays["versions"],
            staleness=arrays["staleness"],
            present=arrays["present"],
        ),
        ledger=LedgerState(numbers["mark"], arrays["done"].tolist()),
        limiter=LimiterState(**numbers["limiter"]),
        held=_held_rows(arrays),
        visible=numbers["visible"],
        counts={outcome: numbers["counts"][outcome.name.lower()] for outcome in Outcome},
        drawing=Drawing(**numbers.get("last_draw", {})),  # older snapshots have none
        duplicates=numbers["duplicates"],
        generated_tokens=numbers["generated_tokens"],
        layout=SlotLayout(**numbers["layout"]),
    )


def _read_numbers(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    if not path.exists() and (folder / UNNUMBERED_FILE).exists():
        raise UserError(
            f"{folder}: a replay buffer's snapshot of an earlier format ({UNNUMBERED_FILE}), which sapo "
            f"{VERSION} does not read; resume with the version that wrote it, or start a new run"
        )
    for name in (STATE_FILE, ARRAYS_FILE):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no snapshot of a replay buffer: {name} is missing")
    numbers = json.loads(path.read_text())
    validate_format(str(path), numbers.get("format") if isinstance(numbers, dict) else None, FORMAT)
    return numbers


def _held_rows(arrays: dict[str, np.ndarray]) -> list[HeldRow]:
    data = arrays["held_payloads"].tobytes()
    spans = list(pairwise(accumulate(arrays["held_bytes"].tolist(), initial=0)))
    held = []
    for i, (first, end) in enumerate(spans):
        outcome = Outcome(int(arrays["held_outcome"][i]))
        payload = data[first:end] if outcome is Outcome.INSERTED else None
        row = InsertRow(int(arrays["held_index"][i]), outcome, payload, int(arrays["held_version"][i]))
        held.append(HeldRow(row, int(arrays["held_step"][i])))
    return held


# ---- the shards ---------------------------------------------------------------------------------------------------


def write_payloads(path: Path, payloads: dict[int, bytes]) -> None:
    """Write ``payloads``, by slot, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.fromiter(map(len, payloads.values()), "<i8", len(payloads))
    with open(path, "wb") as file:
        file.write(SHARD_HEADER.pack(SHARD_MAGIC, FORMAT, len(payloads), int(lengths.sum())))
        file.write(np.fromiter(payloads, "<i8", len(payloads)).tobytes())
        file.write(lengths.tobytes())
        file.writelines(payloads.values())
    flush(path)


def read_payloads(path: Path, wanted: Callable[[int], bool]) -> dict[int, bytes]:
    """The payloads, by slot, of the slots that are ``wanted``."""
    payloads = {}
    with open(path, "rb") as file:
        _, _, pairs, _ = SHARD_HEADER.unpack(file.read(SHARD_HEADER.size))
        slots, lengths = (np.frombuffer(file.read(8 * pairs), "<i8").tolist() for _ in range(2))
        for slot, length in zip(slots, lengths, strict=True):
            if wanted(slot):
                payloads[slot] = file.read(length)
            else:
                file.seek(length, 1)
    return payloads


def readable_state(folder: Path, capacity: int) -> CoordinatorState:
    """The state of a snapshot that a buffer of this capacity can go on from: whole, and of the same capacity.

    Raises:
        UserError: it is not.
    """
    state = read_state(folder)
    require_shards(folder, state.layout.shards, "the snapshot is not whole")
    if capacity != state.index.capacity:
        saved = state.index.capacity
        raise UserError(f"buffer.capacity {capacity}: the snapshot in {folder} was taken at {saved}; keep that")
    return state


def require_shards(folder: Path, shards: int, otherwise: str) -> None:
    """Check that the files of all ``shards`` are there, of this format, and as long as their headers say.

    Raises:
        UserError: one is not; a file that is missing or short is explained by ``otherwise``.
    """
    for path in (shard_file(folder, number) for number in range(shards)):
        if not path.exists():
            raise UserError(f"{path} is missing: {otherwise}")
        with open(path, "rb") as file:
            head = file.read(SHARD_HEADER.size)
        if len(head) < SHARD_HEADER.size:
            raise UserError(f"{path} ends early: {otherwise}")
        magic, number, pairs, payload_bytes = SHARD_HEADER.unpack(head)
        if (magic, number) != (SHARD_MAGIC, FORMAT):
            raise UserError(f"{path}: not a shard of a snapshot of format {FORMAT}")
        if path.stat().st_size != SHARD_HEADER.size + 16 * pairs + payload_bytes:
            raise UserError(f"{path} ends early: {otherwise}")
