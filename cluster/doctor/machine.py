"""Disk, shared memory, compiler, limits, GPUs: what the machine offers. Functions judge figures; ``machine_findings``
reads them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor.finding import Finding, ok, warning, wrong

GIB = 2**30
DISK_BYTES, SHARED_BYTES = 10 * GIB, 2 * GIB
"""Wanted where no config says how much a run needs."""
OPEN_FILES = 4096
"""Ray's workers, sockets and files of a node."""
CAPABILITY = 8.0
"""CUDA compute capability from which bfloat16 and FlashAttention work."""

NCCL = (2, 29, 7)
"""From which a communicator's settings stay its own."""


@dataclass(frozen=True)
class Needs:
    """Of one run."""

    disk_bytes: int = DISK_BYTES
    shared_bytes: int = SHARED_BYTES
    gpus: int = 0
    """Where there are any: without, a run takes cores."""
    known: bool = False
    """Whether a config says so."""


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi tells it."""

    name: str
    memory_mib: int
    driver: str
    capability: float


def machine_findings(output: Path, needs: Needs) -> list[Finding]:
    """Of this machine; ``output`` is where runs are written."""
    there = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    shared = Path("/dev/shm")
    return [
        compiler_finding(shutil.which("c++")),
        disk_finding(str(there), shutil.disk_usage(there).free, os.access(there, os.W_OK), needs),
        shared_finding(shutil.disk_usage(shared).free if shared.exists() else None, needs),
        files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]


def compiler_finding(path: str | None) -> Finding:
    """DeepSpeed and vLLM compile small kernels."""
    if path:
        return ok("compiler", path)
    return wrong("compiler", "no c++ in the PATH", "install a C++ compiler, e.g. apt-get install g++")


def disk_finding(folder: str, free: int, writable: bool, needs: Needs) -> Finding:
    """Room for checkpoints."""
    if not writable:
        return wrong("disk", f"{folder} can't be written", "set output_dir to a folder of yours")
    text = f"{free / GIB:.1f} GiB free at {folder}"
    if free >= needs.disk_bytes:
        return ok("disk", text)
    more = f"{text}; checkpoints take {needs.disk_bytes / GIB:.1f} GiB"
    remedy = "set output_dir to a larger disk, or lower checkpoint.keep"
    return wrong("disk", more, remedy) if needs.known else warning("disk", text, remedy)


def shared_finding(free: int | None, needs: Needs) -> Finding:
    """Ray's object store, and weights on their way to engines, lie in /dev/shm."""
    remedy = "in a container, --shm-size; else mount -o remount,size=…G /dev/shm; or weights.backend=gloo"
    if free is None:
        return warning("shared memory", "there is no /dev/shm: Ray writes to the disk instead, slowly", remedy)
    text = f"{free / GIB:.1f} GiB free in /dev/shm"
    if free >= needs.shared_bytes:
        return ok("shared memory", text)
    more = f"{text}; {needs.shared_bytes / GIB:.1f} GiB are wanted"
    return wrong("shared memory", more, remedy) if needs.known else warning("shared memory", more, remedy)


def files_finding(limit: int) -> Finding:
    """Ray opens many files and sockets."""
    if limit in (-1, resource.RLIM_INFINITY) or limit >= OPEN_FILES:
        return ok("open files", str(limit))
    return warning("open files", f"at most {limit}; Ray wants {OPEN_FILES} and more", f"ulimit -n {16 * OPEN_FILES}")


def gpu_findings(needs: Needs) -> list[Finding]:
    """GPUs that the driver knows and torch can use, and NCCL where there are any."""
    import torch

    gpus = listed_gpus(_nvidia_smi())
    findings = judge_gpus(gpus, torch.cuda.device_count(), torch.version.cuda, torch.__version__, needs)
    return findings + ([nccl_finding(torch.cuda.nccl.version())] if gpus and torch.version.cuda else [])


def nccl_finding(found: tuple[int, ...]) -> Finding:
    """Whether vLLM's settings for its own communicators can reach that of the weights (docs/architecture.md)."""
    text = ".".join(map(str, found))
    if found >= NCCL:
        return ok("NCCL", text)
    remedy = "deterministic=false, or the NCCL that torch comes with"
    return warning("NCCL", f"{text} is older than {'.'.join(map(str, NCCL))}: lockstep runs may hang", remedy)


def judge_gpus(gpus: list[Gpu], usable: int, cuda: str | None, torch_version: str, needs: Needs) -> list[Finding]:
    """
    Args:
        usable: that torch sees.
        cuda: version that torch was built for; None for a CPU build.
    """
    if not gpus:
        return [ok("GPUs", "none: runs on CPU")]
    names = ", ".join(sorted({f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in gpus}))
    text = f"{len(gpus)} × {names}, driver {gpus[0].driver}"
    if cuda is None:
        return [warning("GPUs", f"{text}; torch {torch_version} is built for CPU", "make setup EXTRA=gpu")]
    if usable < len(gpus):
        remedy = "update the driver, or unset CUDA_VISIBLE_DEVICES"
        return [wrong("GPUs", f"{text}; torch (CUDA {cuda}) can use {usable} of them", remedy)]
    findings = [ok("GPUs", f"{text}, CUDA {cuda}")]
    if old := [gpu.name for gpu in gpus if gpu.capability < CAPABILITY]:
        remedy = "model.dtype=float32, or newer cards"
        findings.append(wrong("GPUs", f"{old[0]}: too old for bfloat16 and FlashAttention", remedy))
    if needs.gpus > len(gpus):
        remedy = "lower learner.ranks or generation.actors (`sapo plan` says which), or join more nodes"
        findings.append(warning("GPUs", f"the config wants {needs.gpus}, this machine has {len(gpus)}", remedy))
    return findings


def listed_gpus(table: str) -> list[Gpu]:
    """From nvidia-smi's CSV: name, MiB, driver, compute capability."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip()]
    return [Gpu(name, int(memory), driver, float(capability)) for name, memory, driver, capability in rows]


def _nvidia_smi() -> str:
    """Empty where there is no driver, or it does not answer."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version,compute_cap",
        "--format=csv,noheader,nounits",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
