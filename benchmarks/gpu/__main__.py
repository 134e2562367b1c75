"""What one GPU does with this program and its peers: one table and one JSON file, within nine minutes.

    python -m benchmarks.gpu [--tiny] [--device cpu] [--sections learner engine publication runs]

Every section runs in a process of its own, so that it finds the GPU empty, under a time limit of its own. One that
fails or takes too long leaves a line that says why, and all that it said in benchmarks/results/gpu-SECTION.log, or of a
whole run in gpu-run-MODEL.log.
``--tiny --device cpu`` takes the same way with the smallest models, to see that it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.scale import LIMITS_S, Figure, Scale, Section, scale
from benchmarks.report import RESULTS, machine, save, table_of

MARK = "figure: "
"""Before each of a section's figures among what else its process prints."""
KILLED_S = 60.0
"""Longest that a killed process may take to be gone."""
HEAD = ["section", "case", "shape", "tokens/s", "pairs/s", "of peak", "GPU memory", "GB/s", "seconds", "note"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the smallest models")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sections", nargs="+", choices=list(LIMITS_S), default=list(LIMITS_S))
    parser.add_argument("--section", choices=list(LIMITS_S), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    wanted = scale(arguments.device, tiny=arguments.tiny)
    if arguments.section:
        for figure in run_here(arguments.section, wanted):
            print(MARK + json.dumps(dataclasses.asdict(figure)), flush=True)
        return
    figures = [figure for name in arguments.sections for figure in run_apart(name, wanted, tiny=arguments.tiny)]
    table = table_of(HEAD, [row(figure) for figure in figures])
    print(table)
    name = "gpu-tiny" if arguments.tiny else "gpu"
    save(name, {"machine": machine() | card(arguments.device), "figures": [dataclasses.asdict(f) for f in figures]})
    (RESULTS / f"{name}.md").write_text(table + "\n")


def run_here(name: str, wanted: Scale) -> Iterator[Figure]:
    """A section in this process."""
    measure: Section = importlib.import_module(f"benchmarks.gpu.{name}").measure
    if name not in ("engine", "publication"):
        yield from measure(wanted)
        return
    from cluster.config.sections import ClusterConfig
    from cluster.workers.ray_session import ray_session

    with ray_session(ClusterConfig(cpus=4), needed_cpus=4.0):
        yield from measure(wanted)


def run_apart(name: str, wanted: Scale, *, tiny: bool) -> list[Figure]:
    """A section in a process of its own, ended when its time is over."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--device", wanted.device]
    command += ["--tiny"] if tiny else []
    print(f"{name} …", file=sys.stderr, flush=True)
    limit, ending = wanted.limits_s[name], ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    log = RESULTS / f"gpu{'-tiny' if tiny else ''}-{name}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as process,
    ):
        try:
            printed, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its workers too: they hold the GPU
            printed, _ = process.communicate(timeout=KILLED_S)
            ending = f"not finished within {limit:g} s"
    if process.returncode and not ending:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        ending = f"failed: {said[-1] if said else process.returncode}"
    lines = [line.removeprefix(MARK) for line in printed.splitlines() if line.startswith(MARK)]
    figures = [Figure(**json.loads(line)) for line in lines if line.endswith("}")]
    ending = ending or ("" if figures else "failed: it gave no figure")
    return figures + ([Figure(name, "", "", note=ending)] if ending else [])


def row(figure: Figure) -> list[str]:
    """Of the table."""

    def shown(value: float | None, form: str, unit: float = 1.0) -> str:
        return "" if value is None else format(value / unit, form)

    return [
        figure.section,
        figure.case,
        figure.shape,
        shown(figure.tokens_per_s, ",.0f"),
        shown(figure.pairs_per_s, ".2f"),
        shown(figure.share_of_peak, ".0%"),
        shown(figure.peak_bytes, ".1f", 1e9) + (" GB" if figure.peak_bytes else ""),
        shown(figure.bytes_per_s, ".2f", 1e9),
        shown(figure.seconds, ".2f"),
        figure.note,
    ]


def card(device: str) -> dict[str, Any]:
    """Which GPU it was."""
    if device == "cpu":
        return {"gpu": None}
    import torch

    free, total = torch.cuda.mem_get_info()
    return {"gpu": torch.cuda.get_device_name(), "gpu_bytes": total, "gpu_free_bytes": free}


if __name__ == "__main__":
    main()
