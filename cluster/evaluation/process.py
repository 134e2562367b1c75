"""Runs an evaluation's job in a process that this one starts."""

from __future__ import annotations

import os
import subprocess
import sys

from cluster.evaluation.messages import Answer, Job, Rejection, as_json, read_answer
from contracts.errors import UserError

SHOWN_CHARACTERS = 4000
"""How much of the end of a failed process's output is shown."""


def run_job(job: Job) -> Answer:
    """The answer, which is no ``Rejection``.

    Raises:
        UserError: something that the job names can't be used.
        RuntimeError: the process failed otherwise; the end of its output is in the message.
    """
    # vLLM changes the seed, memory policy and threads of its process: it gets one of its own.
    done = subprocess.run(
        [sys.executable, "-m", "cluster.evaluation.worker", str(os.getpid())],
        input=as_json(job),
        capture_output=True,
        text=True,
        check=False,
        # What the job names is imported from where this process would.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        answer = read_answer(done.stdout.strip().rpartition("\n")[2])  # what libraries print stands above it
    except ValueError as error:
        raise RuntimeError(
            f"evaluation of {job.model} failed with status {done.returncode}:\n{done.stderr[-SHOWN_CHARACTERS:]}"
        ) from error
    if isinstance(answer, Rejection):
        raise UserError(answer.reason)
    return answer
