"""``sapo dashboard``: the Grafana dashboard of runs, put where Grafana looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import UserError

VARIABLE = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"
"""Ray's, for the folder of its own dashboards."""


def dashboard(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the one that Ray's Grafana integration reads.")
    ] = None,
    ray_folder: Annotated[Path, typer.Option(help="Folder of the Ray that runs here, its --temp-dir.")] = Path(
        "/tmp/ray"
    ),
) -> None:
    """Write the Grafana dashboard of runs: a row for each part, a plot for each group of figures.

    Call it on the head node, once Ray runs there: Grafana that was started with Ray's grafana.ini shows it.
    """
    from cluster.reports.grafana import FILE, as_json

    folder = out or _of_ray(ray_folder)
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(as_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {folder}: {path} can't be written: {error.strerror}") from error
    print(f"wrote {path}")


def _of_ray(ray_folder: Path) -> Path:
    """
    Raises:
        UserError: no Ray with metrics has been started there.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    folder = ray_folder / "session_latest" / "metrics" / "grafana" / "dashboards"
    if not folder.is_dir():
        raise UserError(
            f"--ray-folder {ray_folder}: {folder} is not there: start Ray with its dashboard on this machine first, or "
            "give --out"
        )
    return folder
