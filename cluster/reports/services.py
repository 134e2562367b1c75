"""Trackers of others' making that a run's metrics go to when they are asked for: Weights & Biases, MLflow, trackio."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from cluster.config.sections import LoggingConfig
from cluster.reports.trackers import Figures, Tracker
from contracts.background import write_whole
from contracts.errors import UserError

IDS = "trackers.json"
"""In the run folder: what each service calls the run."""
LONGEST_PARAM = 500
"""Characters of a parameter that every MLflow server takes."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
"""Python packages of the services, by their names in ``logging.trackers``."""
Opening = Callable[[], Tracker]
"""Opens a tracker; may fail."""


@dataclass(frozen=True)
class RunInfo:
    """What a service is told of a run."""

    name: str
    folder: Path
    project: str
    offline: bool
    config: dict[str, Any]
    """By dotted key."""


def validate_installed(config: LoggingConfig) -> None:
    """
    Raises:
        UserError: a tracker is asked for whose package is not there.
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise UserError(
                f"logging.trackers {name}: its Python package is not installed: pip install {PACKAGES[name]}, or leave "
                "it out"
            )


def open_services(config: LoggingConfig, name: str, folder: Path, values: dict[str, Any]) -> list[tuple[str, Opening]]:
    """For each tracker that is asked for its name and what opens it, under the id that the run has there.

    Args:
        values: of the run's config, by dotted key.
    """
    info = RunInfo(name, folder, config.project, config.offline, values)
    kinds: dict[str, Callable[[RunInfo, str | None], Service]] = {
        "wandb": WandbTracker,
        "mlflow": MlflowTracker,
        "trackio": TrackioTracker,
    }
    return [(service, _opening(kinds[service], info, service)) for service in config.trackers]


class Service(Tracker, Protocol):
    """A tracker that knows a run by an id."""

    id: str


def _opening(kind: Callable[[RunInfo, str | None], Service], info: RunInfo, service: str) -> Opening:
    def open_it() -> Tracker:
        path = info.folder / IDS
        ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        tracker = kind(info, ids.get(service))
        write_whole(path, json.dumps(ids | {service: tracker.id}))
        return tracker

    return open_it


class WandbTracker:
    """Weights & Biases. Offline, its files lie in the run folder, for ``wandb sync``."""

    def __init__(self, info: RunInfo, run_id: str | None) -> None:
        """``run_id``: of the run that goes on; None: a new one."""
        import wandb

        self._run: Any = wandb.init(
            project=info.project,
            name=info.name,
            id=run_id,
            resume="allow",
            dir=str(info.folder),
            mode="offline" if info.offline else "online",
            config=info.config,
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        self.id = str(self._run.id)
        # Steps that an attempt makes again would be rejected as steps of its own counter.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Figures) -> None:
        self._run.log({"step": step} | _known(figures))

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow. Offline, its database lies in the run folder; else MLFLOW_TRACKING_URI says where."""

    def __init__(self, info: RunInfo, run_id: str | None) -> None:
        """``run_id``: of the run that goes on; None: a new one."""
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{info.folder / 'mlflow.db'}" if info.offline else None
        self._client: Any = MlflowClient(tracking_uri=uri)
        if run_id is None:
            experiment = self._client.get_experiment_by_name(info.project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(info.project)
            run_id = self._client.create_run(number, run_name=info.name).info.run_id
            for key, value in info.config.items():
                self._client.log_param(run_id, key, str(value)[:LONGEST_PARAM])
        self.id = str(run_id)

    def log(self, step: int, figures: Figures) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(name, value, now, step) for name, value in _known(figures).items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


class TrackioTracker:
    """Hugging Face's trackio: a database of this machine, and the Space of TRACKIO_SPACE_ID unless offline."""

    def __init__(self, info: RunInfo, run_id: str | None) -> None:
        """``run_id``: of the run that goes on; None: a new one. trackio knows runs by their names."""
        if info.offline:
            os.environ.pop("TRACKIO_SPACE_ID", None)
        import trackio

        self.id = run_id or info.name
        self._run: Any = trackio.init(
            project=info.project, name=self.id, config=info.config, resume="allow", embed=False
        )

    def log(self, step: int, figures: Figures) -> None:
        self._run.log(_known(figures), step=step)

    def close(self) -> None:
        self._run.finish()


def _known(figures: Figures) -> dict[str, float]:
    """Without what was not finite."""
    return {name: value for name, value in figures.items() if value is not None}
