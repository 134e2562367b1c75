"""What a machine offers is judged by figures, which a test can choose."""

from __future__ import annotations

import pytest

from cluster.doctor.finding import Level
from cluster.doctor.machine import (
    GIB,
    Needs,
    compiler_finding,
    disk_finding,
    files_finding,
    judge_gpus,
    listed_gpus,
    nccl_finding,
    shared_finding,
)

SMI = "NVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0\nNVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0\n"
OLD = "Tesla V100-SXM2-32GB, 32768, 535.1, 7.0\n"
KNOWN = Needs(disk_bytes=20 * GIB, shared_bytes=4 * GIB, gpus=4, known=True)


def test_too_little_is_wrong_where_a_config_says_so_and_a_warning_elsewhere() -> None:
    assert disk_finding("/d", 15 * GIB, True, KNOWN).level is Level.WRONG
    assert disk_finding("/d", 25 * GIB, True, KNOWN).level is Level.OK
    assert disk_finding("/d", 1 * GIB, True, Needs()).level is Level.WARNING
    assert shared_finding(1 * GIB, KNOWN).level is Level.WRONG
    assert shared_finding(1 * GIB, Needs()).level is Level.WARNING
    assert shared_finding(None, Needs()).level is Level.WARNING


def test_a_folder_that_can_not_be_written_is_wrong_however_large() -> None:
    assert disk_finding("/d", 1 << 50, False, Needs()).level is Level.WRONG


def test_every_finding_that_is_not_well_has_a_remedy() -> None:
    found = [compiler_finding(None), files_finding(1024), shared_finding(0, KNOWN), disk_finding("/d", 0, True, KNOWN)]
    assert all(finding.remedy for finding in found)
    assert compiler_finding("/usr/bin/c++").remedy == files_finding(65_536).remedy == ""


def test_an_nccl_whose_settings_leak_is_a_warning() -> None:
    assert nccl_finding((2, 29, 7)).level is Level.OK
    assert nccl_finding((2, 30, 0)).level is Level.OK
    assert nccl_finding((2, 28, 9)).level is Level.WARNING


def test_gpus_are_read_from_the_driver_s_table() -> None:
    first, second = listed_gpus(SMI)
    assert first == second
    assert (first.name, first.memory_mib, first.driver, first.capability) == (
        "NVIDIA H100 80GB HBM3",
        81_559,
        "570.86.15",
        9.0,
    )
    assert listed_gpus("") == []


@pytest.mark.parametrize(
    ("table", "usable", "cuda", "needs", "levels"),
    [
        ("", 0, None, Needs(), [Level.OK]),
        (SMI, 2, "13.0", Needs(), [Level.OK]),
        (SMI, 0, None, Needs(), [Level.WARNING]),  # a CPU build of torch
        (SMI, 1, "13.0", Needs(), [Level.WRONG]),
        (SMI, 2, "13.0", KNOWN, [Level.OK, Level.WARNING]),
        (OLD, 1, "13.0", Needs(), [Level.OK, Level.WRONG]),
    ],
)
def test_gpus_are_judged_by_what_torch_can_use(
    table: str, usable: int, cuda: str | None, needs: Needs, levels: list[Level]
) -> None:
    found = judge_gpus(listed_gpus(table), usable, cuda, "2.13.0", needs)
    assert [finding.level for finding in found] == levels
