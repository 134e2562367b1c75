"""An evaluation's process: `python -m cluster.evaluation.worker PARENT` reads a job from stdin, prints its answer."""

from __future__ import annotations

import os
import sys
import threading
import time

from cluster.evaluation.messages import Answer, EvaluationJob, Job, Rejection, TasksJob, as_json, read_job
from contracts.errors import UserError

PARENT_CHECK_S = 1.0


def answer(job: Job) -> Answer:
    """Raises:
    UserError: something that the job names can't be used.
    """
    if isinstance(job, TasksJob):
        from cluster.evaluation.harness import run_tasks

        return run_tasks(job)
    from cluster.evaluation.answering import answer_questions, respond

    return answer_questions(job) if isinstance(job, EvaluationJob) else respond(job)


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it ends, however it does: nobody would read the answer, and a GPU
    would stay taken.

    Args:
        parent: its process id; it may have ended already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    try:
        print(as_json(answer(read_job(sys.stdin.read()))))
    except UserError as error:
        print(as_json(Rejection(str(error))))
