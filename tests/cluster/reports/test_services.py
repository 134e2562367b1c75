"""Services get a run's metrics under one id, however often it goes on. Tests are skipped without the packages."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.sections import LoggingConfig
from cluster.reports import services
from cluster.reports.services import IDS, open_services, validate_installed
from cluster.reports.trackers import Trackers
from contracts.errors import UserError


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the Python package {package}")


def go_on_twice(folder: Path, service: str, project: str = "tests") -> list[str]:
    """Steps 1 to 3, and after a failed attempt 3 and 4; returns the id of each attempt."""
    config = LoggingConfig(trackers=(service,), project=project, offline=True)  # type: ignore[arg-type]
    ids = []
    for steps in ((1, 2, 3), (3, 4)):
        trackers = Trackers([], logging.getLogger("run"))
        for name, opening in open_services(config, "mine", folder, {"seed": 7}):
            trackers.open(name, opening)
        assert len(trackers._trackers) == 1
        for step in steps:
            trackers.log(step, {"loss": 1.0 / step, "rewards/margins": float("nan")})
        assert len(trackers._trackers) == 1
        trackers.close()
        ids.append(json.loads((folder / IDS).read_text())[service])
    return ids


@needs("mlflow")
def test_mlflow_has_one_run_with_all_steps(tmp_path: Path):
    from mlflow.tracking import MlflowClient

    first, second = go_on_twice(tmp_path, "mlflow")
    assert first == second
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {metric.step for metric in client.get_metric_history(first, "loss")} == {1, 2, 3, 4}
    assert client.get_run(first).data.params == {"seed": "7"}
    assert "rewards/margins" not in client.get_run(first).data.metrics


@needs("wandb")
def test_wandb_keeps_its_id_and_writes_to_the_run_folder(tmp_path: Path):
    first, second = go_on_twice(tmp_path, "wandb")
    assert first == second
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))


@needs("trackio")
def test_trackio_has_one_run_with_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_SPACE_ID", "must/not-be-asked")
    first, second = go_on_twice(tmp_path, "trackio", project=f"tests-{tmp_path.name}")
    assert first == second == "mine"
    logged = SQLiteStorage.get_logs(f"tests-{tmp_path.name}", "mine")
    assert {entry["step"] for entry in logged} == {1, 2, 3, 4}


def test_what_is_asked_for_and_absent_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(services, "find_spec", lambda name: None)
    validate_installed(LoggingConfig())
    with pytest.raises(UserError, match=r"logging.trackers mlflow: .* pip install mlflow-skinny"):
        validate_installed(LoggingConfig(trackers=("mlflow",)))


def test_a_service_that_can_not_be_opened_is_left_out_with_one_line(caplog: pytest.LogCaptureFixture):
    trackers = Trackers([], logging.getLogger("run"))

    def opening() -> Any:
        raise ConnectionError("no login")

    trackers.open("wandb", opening)
    trackers.log(1, {"loss": 0.5})
    said = [record.getMessage() for record in caplog.records]
    assert said == ["logging.trackers wandb: it can't be opened and is left out: no login"]


def test_an_id_is_kept_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given: list[str | None] = []

    def tracker(info: Any, run_id: str | None) -> Any:
        given.append(run_id)
        return SimpleNamespace(id="abc")

    monkeypatch.setattr(services, "WandbTracker", tracker)
    for _ in range(2):
        ((_, opening),) = open_services(LoggingConfig(trackers=("wandb",)), "mine", tmp_path, {})
        opening()
    assert given == [None, "abc"]
