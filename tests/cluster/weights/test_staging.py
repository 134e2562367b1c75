"""Two versions are held: one may be sent while the next is staged, and the newest whole one is what is sent."""

from __future__ import annotations

import contextlib

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
