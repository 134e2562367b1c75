"""How weights travel is chosen by the hardware, and known without loading vLLM."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.weights.publisher_spec import PublisherSpec, choose_backend
from support.paths import REPOSITORY


@pytest.mark.parametrize(
    ("wanted", "use_gpu", "nodes", "chosen"),
    [
        ("auto", True, 1, "nccl"),
        ("auto", True, 2, "nccl"),
        ("auto", False, 1, "shm"),
        ("auto", False, 2, "gloo"),
        ("gloo", True, 1, "gloo"),
        ("ipc", True, 1, "ipc"),
    ],
)
def test_the_backend_is_the_hardwares_unless_one_is_asked_for(wanted, use_gpu, nodes, chosen):
    assert choose_backend(wanted, use_gpu, nodes) == chosen


@pytest.mark.parametrize(("nodes", "chosen"), [(1, "shm"), (2, "gloo")])
def test_where_learner_and_engine_share_a_gpu_nccl_is_not_chosen(nodes, chosen):
    assert choose_backend("auto", True, nodes, colocate=True) == chosen


def test_the_answers_to_a_publication_are_read_without_vllm_or_torch():
    code = "import sys, learner.messages; print({'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("overlap", "copies"), [(True, 2), (False, 1)])
def test_a_second_copy_of_the_weights_is_held_only_where_versions_overlap(overlap, copies):
    publisher = PublisherSpec("gloo", 1.0, overlap=overlap).build()
    assert len(publisher._staged._slots) == copies
