"""Scores a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cluster.data.locations import reject_absent
from cluster.evaluation.messages import TaskScores, TasksJob
from cluster.evaluation.process import run_job
from contracts.errors import UserError


def score_on_tasks(
    model: str,
    tasks: list[str],
    *,
    few_shots: int | None = None,
    limit: int | None = None,
    chat_template: bool | None = None,
    seed: int = 0,
) -> TaskScores:
    """
    Args:
        model: folder or hub name; or a file of responses, as AlpacaEval has them, which are scored as they are.
        tasks: names of tasks, groups or tags of the harness, and folders of task files.
        few_shots: examples before each question; None: what the task says.
        limit: questions of each task; None: all.
        chat_template: whether questions are turns of a conversation; None: where the tokenizer has a chat template.

    Raises:
        UserError: the harness is not installed, or model or tasks can't be used.
        RuntimeError: the process failed otherwise.
    """
    validate(model, tasks)
    stored = Path(model).is_file()
    job = TasksJob(model, tasks, few_shots, limit, chat_template, seed, responses=model if stored else None)
    answer = run_job(job)
    assert isinstance(answer, TaskScores)
    return answer


def validate(model: str, tasks: list[str]) -> None:
    """What can be said before a process is started.

    Raises:
        UserError: the harness is not installed, no task is named, or the model or a task's folder is not there.
    """
    if not tasks:
        raise UserError("--tasks names none")
    if not Path(model).is_file():
        reject_absent(model, "model")
    for name in tasks:
        if "/" in name and not Path(name).is_dir():
            raise UserError(f"--tasks {name}: no such folder")
    if find_spec("lm_eval") is None:
        raise UserError("--tasks needs lm-evaluation-harness, which is not installed: pip install 'sapo[eval]'")
