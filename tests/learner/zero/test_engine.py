"""The process group's limits, and what DeepSpeed has against a configuration."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.rank_group import in_group, sections, start

LIMIT_S = 4321.0


def look(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    from torch.distributed import distributed_c10d

    start(rank, world, port, parts)
    found = []
    for group in distributed_c10d._world.pg_map:
        backend = group._get_backend(group._device_types[0])
        found.append(str(backend.options._timeout == timedelta(seconds=LIMIT_S)))
    (Path(out) / f"{rank}.txt").write_text(" ".join(found))


@pytest.mark.slow
def test_every_group_has_the_limit_deepspeeds_own_too(tiny_llama: str, tmp_path: Path):
    parts = sections(tiny_llama, learner={"collective_timeout_s": LIMIT_S, "zero_stage": 2})
    in_group(2, look, parts, str(tmp_path))
    for rank in range(2):
        answers = (tmp_path / f"{rank}.txt").read_text().split()
        assert len(answers) >= 2  # torch's first group and DeepSpeed's clone of it
        assert set(answers) == {"True"}


def meet(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    from deepspeed.comm import comm

    from learner.messages import RankSpec
    from learner.rank import LearnerRank

    LearnerRank(rank, world, RankSpec(**parts)).rendezvous("127.0.0.1", port)
    (Path(out) / f"{rank}.txt").write_text(str(comm.cdb.shm_comm_op))


@pytest.mark.slow
def test_a_group_meets_without_compiling_anything(tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
    in_group(2, meet, sections(tiny_llama), str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["None", "None"]
    assert not compiled.exists()


def be_rejected(rank: int, world: int, port: int, parts: dict[str, Any]) -> None:
    from contracts.errors import UserError

    line = r"^learner.deepspeed: DeepSpeed rejects it: reduce_bucket_sise: Extra inputs are not permitted$"
    with pytest.raises(UserError, match=line):
        start(rank, world, port, parts)


@pytest.mark.slow
def test_what_deepspeed_does_not_know_is_one_line(tiny_llama: str):
    added = {"zero_optimization": {"reduce_bucket_sise": 9}}
    in_group(1, be_rejected, sections(tiny_llama, learner={"ranks": 1, "deepspeed": added, "zero_stage": 2}))
