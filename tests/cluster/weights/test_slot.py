"""A staged version is whole, verified, and its memory is gone with its last user."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.weights import slot as module
from cluster.weights.slot import Slot
from support.paths import REPOSITORY


def test_a_checksum_covers_every_byte():
    tensor = torch.arange(50, dtype=torch.float32)
    slot = Slot(shared=False)
    slot.fill(1, [("w", torch.float32, (50,))], [[("w", tensor)]])
    assert torch.equal(slot.update.verified(slot.bytes)["w"], tensor)
    for byte in (0, 99, 199):
        slot.bytes[byte] += 1
        with pytest.raises(RuntimeError, match="arrived damaged"):
            slot.update.verified(slot.bytes)
        slot.bytes[byte] -= 1


@given(
    layers=st.lists(
        st.lists(st.tuples(st.integers(0, 700), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))),
        min_size=1,
    ),
    limits=st.sampled_from([(64, 64), (256, 64), (300, 100), (1024, 1024)]),
    before=st.integers(0, 255),
)
def test_buckets_tile_what_was_staged_and_every_weight_arrives(
    layers: list[list[tuple[int, torch.dtype]]], limits: tuple[int, int], before: int
) -> None:
    weights = [
        [(f"{i}.{j}", torch.arange(n).remainder(251).to(dtype)) for j, (n, dtype) in enumerate(layer)]
        for i, layer in enumerate(layers)
    ]
    announced = [(name, weight.dtype, tuple(weight.shape)) for layer in weights for name, weight in layer]
    slot = Slot(shared=False)
    with mock.patch.multiple(module, BUCKET_BYTES=limits[0], CHUNK_BYTES=limits[1]):
        slot.fill(1, announced, weights)
        slot.bytes.fill_(before)  # what an earlier version left between the weights
        slot.fill(2, announced, weights)
    starts, ends = [b.first for b in slot.update.buckets], [b.end for b in slot.update.buckets]
    assert [*starts, len(slot.bytes)] == [0, *ends]
    assert all(end - start <= limits[0] for start, end in zip(starts, ends, strict=True))
    arrived = slot.update.verified(slot.bytes)
    assert all(torch.equal(arrived[name], weight) for layer in weights for name, weight in layer)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([("v", torch.zeros(50))], "v .* came where w"),
        ([("w", torch.zeros(49))], "came where w"),
        ([("w", torch.zeros(50, dtype=torch.bfloat16))], "came where w"),
        ([("w", torch.zeros(50))] * 2, "came where nothing"),
        ([], "w was announced and did not come"),
    ],
)
def test_only_what_was_announced_is_staged(weights: list[tuple[str, torch.Tensor]], message: str) -> None:
    slot = Slot(shared=False)
    with pytest.raises(RuntimeError, match=message):
        slot.fill(1, [("w", torch.float32, (50,))], [weights])
    assert slot.version == -1


def staged_slot() -> Slot:
    slot = Slot(shared=True)
    slot.fill(1, [("w", torch.float32, (50,))], [[("w", torch.arange(50, dtype=torch.float32))]])
    return slot


def held(process: Path) -> list[int]:
    """Inodes of slots' memory that a process has, one for every handle and every map."""
    inodes = []
    for handle in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the handle of this listing is among them
            if "sapo-weights" in os.readlink(handle):
                inodes.append(handle.stat().st_ino)
    for line in (process / "maps").read_text().splitlines():
        if "sapo-weights" in line:
            inodes.append(int(line.split()[4]))
    return inodes


SELF = Path("/proc/self")


def test_a_released_slot_has_given_its_memory_back():
    before = held(SELF)
    slot = staged_slot()
    path = Path(slot.update.path)
    inode = path.stat().st_ino
    assert held(SELF).count(inode) == 2  # a handle and a map
    slot.release()
    assert not path.exists()
    assert held(SELF) == before


def test_a_slot_of_another_size_has_given_the_memory_of_the_first_back():
    before = held(SELF)
    slot = staged_slot()
    slot.fill(2, [("w", torch.float32, (5000,))], [[("w", torch.zeros(5000))]])
    assert len(held(SELF)) == len(before) + 2
    slot.release()
    assert held(SELF) == before


STAGE_AND_WAIT = """
import sys, torch
from cluster.weights.slot import Slot
slot = Slot(shared=True)
slot.fill(1, [("w", torch.float32, (50,))], [[("w", torch.arange(50, dtype=torch.float32))]])
print(slot.update.path, flush=True)
sys.stdin.read()
"""


def users(inode: int) -> set[int]:
    """Processes of this machine that have the memory with this inode open or mapped."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if inode in held(process):
                found.add(int(process.name))
    return found


@pytest.mark.chaos
def test_shared_memory_is_read_by_others_and_gone_when_the_sender_is_killed():
    sender = subprocess.Popen(
        [sys.executable, "-c", STAGE_AND_WAIT],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sender.stdout is not None
    path = Path(sender.stdout.readline().strip())
    inode = path.stat().st_ino
    mapped = torch.from_file(str(path), shared=True, size=50, dtype=torch.float32)
    assert torch.equal(mapped, torch.arange(50.0))
    assert users(inode) == {sender.pid, os.getpid()}
    sender.kill()
    sender.communicate()
    assert not path.exists()
    assert users(inode) == {os.getpid()}
    del mapped
    assert not users(inode)
