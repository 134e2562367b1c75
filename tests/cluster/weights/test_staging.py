"""One version may be sent while the next is staged, and the newest whole one is what is sent. Without overlap one
copy is held, and nothing is sent of a version that is not whole."""

from __future__ import annotations

import contextlib
import threading

import torch

from cluster.weights.staging import StagedVersions


def stage(staged: StagedVersions, version: int) -> None:
    weight = torch.full((3,), float(version))
    staged.stage(version, [("w", weight.dtype, tuple(weight.shape))], [[("w", weight)]])


def test_what_is_being_sent_is_not_staged_over():
    staged = StagedVersions(shared=False)
    stage(staged, 1)
    with staged.sending() as slot:
        for version in (2, 3, 4):
            stage(staged, version)
        assert slot is staged.slot
        assert slot.version == 1
        assert [(name, tensor.tolist()) for name, tensor in staged] == [("w", [1.0, 1.0, 1.0])]
        assert [(entry.name, entry.dtype, entry.shape) for entry in staged.metadata()] == [("w", torch.float32, (3,))]


def test_a_version_that_was_overtaken_is_not_sent():
    staged = StagedVersions(shared=False)
    for version in (1, 2, 3):
        stage(staged, version)
    with staged.sending() as slot:
        assert slot is not None and slot.version == 3


def test_without_a_whole_version_there_is_nothing_to_send():
    staged = StagedVersions(shared=False)
    with staged.sending() as slot:
        assert slot is None


def test_a_version_that_did_not_come_whole_leaves_the_one_before_it():
    staged = StagedVersions(shared=False)
    stage(staged, 1)
    with contextlib.suppress(RuntimeError):
        staged.stage(2, [("w", torch.float32, (3,)), ("v", torch.float32, (3,))], [[("w", torch.zeros(3))]])
    newest = staged.newest()
    assert newest is not None and newest.version == 1


def test_without_overlap_one_copy_is_held():
    staged = StagedVersions(shared=False, overlap=False)
    for version in (1, 2, 3):
        stage(staged, version)
        with staged.sending() as slot:
            assert slot is not None and slot.version == version
    assert sum(len(slot.bytes) for slot in staged._slots) == 64  # three fp32 and their alignment, once


def test_without_overlap_staging_and_sending_wait_for_each_other():
    staged, begun, go_on = StagedVersions(shared=False, overlap=False), threading.Event(), threading.Event()
    stage(staged, 1)

    def slowly():
        begun.set()
        go_on.wait(10)
        yield [("w", torch.full((3,), 2.0))]

    stager = threading.Thread(target=lambda: staged.stage(2, [("w", torch.float32, (3,))], slowly()))
    with staged.sending() as slot:
        stager.start()
        assert not begun.wait(0.2)  # waits for the version that is being sent
        assert slot is not None and slot.tensors().__next__()[1].tolist() == [1.0, 1.0, 1.0]
    assert begun.wait(10)
    seen: list[int] = []

    def send() -> None:
        with staged.sending() as slot:
            seen.append(slot.version if slot else -1)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.2)
    assert not seen  # waits until the version is whole
    go_on.set()
    stager.join(10)
    sender.join(10)
    assert seen == [2]
