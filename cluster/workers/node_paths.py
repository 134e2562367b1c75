"""Asks every node that may get a rank or an actor whether it sees the model and the run folder, before any starts.

A folder that only the driver's node has costs minutes otherwise: engines and ranks take its path for a name on the hub.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.workers.resources import Hardware, demands
from cluster.workers.room import may_hold
from contracts.errors import UserError, last_line

Paths = dict[str, str]
"""Absolute paths by the config key that names them."""


def validate_nodes(config: RunConfig, hardware: Hardware, *, learner: bool = True) -> None:
    """Run one small task on each node. A Ray that this process started is this machine alone and is not asked.

    Args:
        config: with absolute paths.
        learner: False for generation alone, which leaves nothing on the nodes.

    Raises:
        UserError: a node does not see the model or the folder that runs are written to, or lacks this program.
    """
    if hardware.local:
        return
    ranks, actors = demands(config, use_gpu=hardware.use_gpu, learner=learner)
    model = {"model.path": config.model.path} if Path(config.model.path).is_absolute() else {}
    with _probe(config.output_dir) if learner else _nothing() as probe:
        wanted: dict[str, Paths] = {}
        for node in (node for node in ray.nodes() if node["Alive"]):
            runs_a_rank = ranks.count and may_hold(node["Resources"], ranks)
            if runs_a_rank or (actors.count and may_hold(node["Resources"], actors)):
                wanted[node["NodeID"]] = model | (probe if runs_a_rank else {})
        _ask({node: paths for node, paths in wanted.items() if paths}, config)


def missing_paths(paths: Paths) -> list[str]:
    """The keys of those paths that this process can't read."""
    return [key for key, path in paths.items() if not os.access(path, os.R_OK)]


def _ask(wanted: dict[str, Paths], config: RunConfig) -> None:
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    task: Any = ray.remote(num_cpus=0, max_retries=0)(missing_paths)
    answers = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths)
        for node, paths in wanted.items()
    }
    for node, answer in answers.items():
        where = f"node {addresses[node]} ({node[:8]})"
        try:
            missing = ray.get(answer, timeout=config.cluster.start_timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            waited = f"{config.cluster.start_timeout_s:g} s"
            raise UserError(f"cluster: {where} did not start a small task within {waited}") from error
        except ray.exceptions.RayError as error:
            raise UserError(f"cluster: {where} can't run this program: {last_line(error)}") from error
        for key in missing:
            path = config.output_dir if key == "output_dir" else wanted[node][key]
            raise UserError(
                f"{key} {path}: {where} does not see it; use a folder that all nodes share"
                + (", or the name of a model on the hub" if key == "model.path" else "")
            )


@contextmanager
def _probe(output_dir: str) -> Iterator[Paths]:
    """An empty file, in ``output_dir`` or the folder above it that is there, by which a node shows that it sees the
    same folder and not one of the same name."""
    place = next(p for p in (Path(output_dir), *Path(output_dir).parents) if p.is_dir())
    try:
        handle, name = tempfile.mkstemp(prefix=".sapo-", dir=place)
    except OSError as error:
        raise UserError(f"output_dir {output_dir}: {place} can't be written: {error.strerror}") from error
    os.close(handle)
    try:
        yield {"output_dir": name}
    finally:
        os.unlink(name)


@contextmanager
def _nothing() -> Iterator[Paths]:
    yield {}
