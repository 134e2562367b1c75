"""Fixtures: tiny random models and one local Ray for the session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from support.models import save_llama
from support.paths import REPOSITORY
from support.wheel import Installed, build_wheel, install

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No test is timed, an example of a property neither: the machine may be busy with other things.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip where there is none. With two workers the files that take minutes come first, so that
    both end at about the same time."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("models") / "untied", tied=False)


@pytest.fixture(scope="session")
def tiny_llama_tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct in fp32, a real language model; the folder is the one of ``make demo-real``."""
    from demo.smollm2 import INSTALL, missing_packages, write_model

    if missing := missing_packages():
        pytest.skip(f"needs SmolLM2-135M-Instruct: Python package {', '.join(missing)} is not installed ({INSTALL})")
    folder = REPOSITORY / "data" / "real" / "model"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one of several workers writes it
        write_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray on this machine alone, with a temporary folder of its own (a short path: sockets live there)."""
    import ray

    folder = tempfile.mkdtemp(prefix="sapo-ray-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        log_to_driver=True,
        object_store_memory=256 << 20,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The program installed from its wheel, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    return install(build_wheel(folder / "dist"), folder / "venv")


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data, and a random model with the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from demo.model import write_model
    from demo.task import write_data

    folder = tmp_path_factory.mktemp("task")
    write_data(folder, 200, 0)
    write_model(folder / "model", hidden=64, layers=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model")).save_pretrained(folder / "model")
    return folder
