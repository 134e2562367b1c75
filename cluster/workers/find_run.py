"""From what a person says of a run to the cluster on which it goes on, or the folder that it left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.storage.run_lock import holder_of
from contracts.errors import UserError

RUNS = Path("runs")
"""Default of ``output_dir``."""


@dataclass(frozen=True)
class Found:
    """A run, or where to ask for one."""

    name: str | None
    """None: the only one that goes on at ``address``."""
    address: str | None
    """Ray cluster; None: it does not go on, or not where it could be seen from here."""
    folder: Path | None = None
    """On this machine; None where there is none."""
    auth: str = ""
    """RAY_AUTH_MODE of that cluster; empty where the environment has to say it."""


def find_run(run: str | None, address: str | None) -> Found:
    """
    Args:
        run: name or folder; None: the one that goes on.
        address: Ray cluster; default: RAY_ADDRESS, else what the run folder says of itself.

    Raises:
        UserError: no address is known, no folder is there, or it is not clear which.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if run is None:
        return Found(None, address) if address else _only_one_here()
    folder = next((path for path in (Path(run), RUNS / run) if path.is_dir()), None)
    name = (folder or Path(run)).resolve().name
    if address:
        return Found(name, address, folder)
    if folder is None:
        raise UserError(
            f"run {run}: no run folder {RUNS / run} here; give its folder, or for a run on a cluster --address or "
            "RAY_ADDRESS"
        )
    return _here(name, folder)


def _only_one_here() -> Found:
    here = sorted(path for path in RUNS.glob("*") if path.is_dir() and _here(path.name, path).address)
    if len(here) == 1:
        return _here(here[0].name, here[0])
    if here:
        raise UserError(f"--run: several are going on: {', '.join(path.name for path in here)}; name one")
    raise UserError(
        f"no run is going on in {RUNS.absolute()}; --run NAME or FOLDER shows one that has ended, --address or "
        "RAY_ADDRESS one on a cluster"
    )


def _here(name: str, folder: Path) -> Found:
    holder = holder_of(folder)
    if holder is None or not holder.ray or not holder.runs_here:
        return Found(name, None, folder)
    return Found(name, holder.ray, folder, holder.ray_auth)
