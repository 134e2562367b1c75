"""A failed engine is reported by what its own processes said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import vllm.envs
from vllm.v1.engine.exceptions import EngineDeadError

from actors.own_output import STREAMS, OwnOutput

STARTED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
SAID = """
(EngineCore pid=7328) ERROR 11-27 16:08:38 [core.py:1510] EngineCore failed to start.
(EngineCore pid=7328) ERROR 11-27 16:08:38 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=7328) ERROR 11-27 16:08:38 [core.py:1510]     from flashinfer import (
(EngineCore pid=7328) ERROR 11-27 16:08:38 [core.py:1510] ModuleNotFoundError: No module named 'flashinfer'
(EngineCore pid=7328) ERROR 11-27 16:08:39 [core.py:1510] RuntimeError: a later one
Process EngineCore:
"""
OF_TENSOR_PARALLEL = """
(Worker_TP1 pid=9) ERROR 11-27 16:08:38 [multiproc_executor.py:820] WorkerProc failed to start.
(Worker_TP1 pid=9) ERROR 11-27 16:08:38 [multiproc_executor.py:820] torch.OutOfMemoryError: CUDA out of memory.
(EngineCore pid=8) ERROR 11-27 16:08:39 [core.py:1510] EngineCore failed to start.
(EngineCore pid=8) ERROR 11-27 16:08:39 [core.py:1510] Exception: WorkerProc initialization failed due to \
an exception in a background process. See stack trace for root cause.
"""
OF_A_LATER_DEATH = """
(EngineCore pid=8) ERROR 11-27 12:00:00 [core.py:1750] Invocation of collective_rpc method failed
(EngineCore pid=8) ERROR 11-27 12:00:00 [core.py:1750] AttributeError: survived
(EngineCore pid=8) ERROR 11-27 16:08:38 [core.py:1520] EngineCore encountered a fatal error.
(EngineCore pid=8) ERROR 11-27 16:08:38 [core.py:1520]     raise ValueError("not the end of a traceback")
(EngineCore pid=8) ERROR 11-27 16:08:38 [core.py:1520] AssertionError
"""


@pytest.fixture
def output(tmp_path: Path):
    """A process's own output, and the file behind its standard output."""
    with (tmp_path / "worker.out").open("w") as file, (tmp_path / "worker.err").open("w") as errors:
        file.write("(EngineCore pid=1) ERROR 11-27 16:08:00 [core.py:1] ValueError: of an engine before\n")
        file.flush()
        yield OwnOutput((file.fileno(), errors.fileno())), file


def test_vllm_logs_to_a_stream_that_is_read():
    assert vllm.envs.VLLM_LOGGING_STREAM == "ext://sys.stdout"
    assert STREAMS[0] == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (SAID, "ModuleNotFoundError: No module named 'flashinfer'"),
        (OF_TENSOR_PARALLEL, "torch.OutOfMemoryError: CUDA out of memory."),
        (OF_A_LATER_DEATH, "AssertionError"),
        ("nothing of use\n", STARTED),
    ],
)
def test_a_line_that_points_to_the_output_is_replaced_by_what_stands_there(output, said: str, reason: str):
    own, file = output
    file.write(said)
    file.flush()
    assert own.reason(RuntimeError(STARTED)) == reason


def test_of_an_engine_that_died_later_too(output):
    own, file = output
    file.write(SAID)
    file.flush()
    assert "flashinfer" in own.reason(EngineDeadError())


def test_an_error_that_says_what_is_wrong_stays(output):
    own, file = output
    file.write(SAID)
    file.flush()
    assert own.reason(ValueError("no such model")) == "no such model"


def test_without_a_file_the_line_stays():
    _, writing = os.pipe()
    assert OwnOutput([writing]).reason(RuntimeError(STARTED)) == STARTED
