"""Takes the speed of a machine from a run that was made on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.planning.model_shape import read_shape
from cluster.planning.throughput import (
    Calibration,
    Device,
    generation_seconds,
    learner_seconds,
    publication_seconds,
)
from cluster.planning.workload import Workload
from cluster.reports.page.run_record import RunRecord, read_run
from contracts.errors import UserError

WARM_STEPS = 2
"""Left out at the start: engines start, kernels are compiled."""
ACTORS_IDLE = re.compile(r"actors idle (\d+)%")


@dataclass(frozen=True)
class Measured:
    """Of a finished run, per optimizer step."""

    learner_s: float
    publication_s: float
    rest_s: float
    step_s: float
    generation_s: float
    """Of one actor, had it made the step's pairs alone; 0 without actors."""
    workload: Workload
    """As the run's own counts of tokens say."""


def measure(run: RunRecord, config: RunConfig) -> Measured:
    """What the metrics of a run say about its steps.

    Raises:
        UserError: it has too few steps, or its log does not say how idle its actors were.
    """
    steps = len(run.steps) - WARM_STEPS
    if steps < 5:
        raise UserError(f"{run.path}: {len(run.steps)} steps are too few to calibrate with; at least {WARM_STEPS + 5}")

    def mean(name: str) -> float:
        return float(np.nan_to_num(run.column(name)[WARM_STEPS:]).sum() / steps)

    step_s, learner_s, published_s = mean("time/step_s"), mean("time/train_s"), mean("time/publish_s")
    if not step_s:
        raise UserError(f"{run.path}: its metrics have no time/step_s: another version wrote them")
    waited_s = mean("time/draw_wait_s") + mean("time/weights_wait_s")
    batch, trained = config.learner.batch_size, mean("tokens/trained")
    if config.method != "sapo":
        workload = Workload(None, 0.0, trained / batch, 0.0, 0.0, 0.0)
        return Measured(learner_s, 0.0, max(0.0, step_s - learner_s - waited_s), step_s, 0.0, workload)
    generated = float(run.column("tokens/generated")[-1] - run.column("tokens/generated")[WARM_STEPS - 1]) / steps
    segment = generated / config.inserts_per_step
    actors = config.generation.actors
    generation_s = step_s * actors * (1 - _actors_idle(run))
    # Prompt and prefix are not told apart by the metrics, and the model needs their sum alone.
    workload = Workload(None, max(0.0, trained / batch - 2 * segment), segment, segment, 0.0, 0.0)
    rest_s = max(0.0, step_s - learner_s - published_s - waited_s)
    return Measured(learner_s, published_s, rest_s, step_s, generation_s, workload)


def calibrate(folder: Path, device: Device, gpu_memory_bytes: float | None) -> Calibration:
    """Factors between the model and a run in ``folder``.

    Raises:
        UserError: the run can't be read, or says too little.
    """
    run = read_run(folder)
    config = validate_config(run.config, str(folder / "config.yaml"))
    checkpoints = sorted(folder.glob("checkpoints/step-*/policy"))
    # The starting model may be gone; the run's own has the same shape.
    model = config.model.model_copy(update={"path": str(checkpoints[-1])}) if checkpoints else config.model
    shape, measured = read_shape(model), measure(run, config)
    ranks, workload = config.learner.ranks, measured.workload
    learner = measured.learner_s / learner_seconds(config, shape, workload, device, ranks)
    if config.method != "sapo":
        return Calibration(learner=learner, rest_s=measured.rest_s)
    return Calibration(
        learner,
        measured.generation_s / generation_seconds(config, shape, workload, device, gpu_memory_bytes),
        measured.publication_s / publication_seconds(config, shape, device),
        measured.rest_s,
    )


def _actors_idle(run: RunRecord) -> float:
    """Share of the time, as the last bottleneck report says."""
    found = [match for line in run.log if (match := ACTORS_IDLE.search(line.text))]
    if not found:
        raise UserError(f"{run.path / 'run.log'}: no line says how idle the actors were; calibrate with a finished run")
    return int(found[-1][1]) / 100
