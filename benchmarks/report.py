"""What every benchmark prints and writes: a table, and JSON in benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "date": time.strftime("%F")}


def save(name: str, results: dict[str, Any]) -> None:
    """Write ``results`` to benchmarks/results/NAME.json and print where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=1))
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def table_of(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [head, ["-" * len(cell) for cell in head], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded[1] = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
