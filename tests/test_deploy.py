"""What is in deploy/ fits the program: scripts parse, commands exist, versions and numbers of GPUs agree.

Nothing here starts a container, a cluster or a cloud.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.config.recipes import recipe
from support.paths import REPOSITORY
from support.shell_commands import commands, complaint, sapo_words

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
EXTRAS = ("cpu", "gpu")
ON_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.11"}


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def locked(extra: str) -> dict[str, str]:
    lines = (DEPLOY / f"requirements-{extra}.txt").read_text().split("\n")
    pins = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version for name, _, version in pins}


SCRIPTS = {
    "slurm.sh": (DEPLOY / "slurm.sh").read_text(),
    "skypilot.yaml, setup": manifest("skypilot.yaml")["setup"],
    "skypilot.yaml, run": manifest("skypilot.yaml")["run"],
    "rayjob.yaml": manifest("rayjob.yaml")["spec"]["entrypoint"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    for number, script in enumerate(SCRIPTS.values()):
        file = tmp_path / f"{number}.sh"
        file.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        done = subprocess.run(["shellcheck", "-e", "SC1090,SC1091", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say() -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [name for name in SCRIPTS if not name.endswith("setup")])
def test_every_call_of_the_program_in_the_scripts_is_a_command_of_it(name: str) -> None:
    calls = [words for command in commands(SCRIPTS[name]) if (words := sapo_words(command)) is not None]
    assert {words[0] for words in calls} >= {"recipes", "train"}
    assert [complaint(words) for words in calls] == [None] * len(calls)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_lock_meets_every_requirement(extra: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = locked(extra)
    for text in (*project["dependencies"], *project["optional-dependencies"][extra]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)].partition("+")[0]), text


def test_the_lock_holds_what_its_packages_require() -> None:
    """By the metadata of the packages that are installed here, where they are the locked ones."""
    from importlib.metadata import PackageNotFoundError, distribution

    pins, unwanted = locked("cpu"), re.search(r"^UNWANTED := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert unwanted
    seen = 0
    for name, version in pins.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if found.version != version:
            continue
        seen += 1
        for text in found.requires or ():
            required = Requirement(text)
            wanted = canonicalize_name(required.name)
            if wanted in unwanted[1].split() or (
                required.marker and not required.marker.evaluate({**ON_LINUX, "extra": ""})
            ):
                continue
            assert wanted in pins, f"{name} requires {text}"
    assert seen > 20


def test_images_install_the_locked_versions_beside_the_right_cuda() -> None:
    for extra in EXTRAS:
        assert re.search(rf"^FROM \S+ AS {extra}$", DOCKERFILE, re.M)
    for path in re.findall(r"source=(deploy/\S+?),", DOCKERFILE):
        assert (REPOSITORY / path).exists()
    cuda = re.search(r"nvidia/cuda:(\d+\.\d+)\.", DOCKERFILE)
    assert cuda
    assert locked("gpu")["cuda-toolkit"].startswith(f"{cuda[1]}.")


def test_the_ray_job_has_the_image_s_ray_and_the_recipe_s_gpus() -> None:
    spec = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == locked("gpu")["ray"]
    workers = spec["workerGroupSpecs"][0]
    pods = [spec["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
    gpus = workers["replicas"] * int(pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == int(recipe("mistral-7b-dpo-2-nodes").gpus.split()[0])


def test_the_slurm_job_and_the_cloud_machine_have_the_recipe_s_gpus() -> None:
    nodes, gpus = (
        int(found[1])
        for key in ("nodes", "gpus-per-node")
        if (found := re.search(rf"--{key}=(\d+)", SCRIPTS["slurm.sh"]))
    )
    assert nodes * gpus == int(recipe("mistral-7b-dpo-2-nodes").gpus.split()[0])
    accelerators = manifest("skypilot.yaml")["resources"]["accelerators"]
    assert int(accelerators.partition(":")[2]) == int(recipe("mistral-7b-dpo").gpus.split()[0])


def test_skypilot_accepts_its_file() -> None:
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(manifest("skypilot.yaml"), schemas.get_task_schema())
