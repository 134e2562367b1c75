"""A user's own arguments of vLLM are known ones that a run does not set itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import GenerationConfig
from actors.engine_arguments import SET_BY, known_arguments, rejection
from actors.engine_options import cpu_arguments, engine_arguments
from actors.messages import EngineSpec
from support.paths import REPOSITORY


@pytest.mark.parametrize("use_gpu", [True, False])
def test_every_argument_that_a_run_sets_is_rejected_by_name(use_gpu: bool):
    spec = EngineSpec("m", "float32", 64, ends=(2,), seed=0, backend="shm", use_gpu=use_gpu)
    ours = engine_arguments(spec, GenerationConfig(tensor_parallel=2, kv_cache_bytes=9)).keys()
    # On CPU alone: engine_arguments rejects these itself.
    of_the_device = cpu_arguments(64).keys() - SET_BY.keys()
    assert ours - of_the_device <= SET_BY.keys()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"dtype": "float16"}, "engine_args.dtype is set by model.dtype"),
        (
            {"max_num_batched_token": 9},
            "engine_args.max_num_batched_token is no argument of vLLM's; did you mean max_num_batched_tokens?",
        ),
        ({"xyzzy": 1}, "engine_args.xyzzy is no argument of vLLM's"),
    ],
)
def test_the_config_rejects_what_can_not_be_passed_on(arguments: dict[str, Any], line: str):
    with pytest.raises(ValidationError) as raised:
        GenerationConfig(engine_args=arguments)
    assert raised.value.errors()[0]["msg"] == f"Value error, {line}"


@pytest.mark.contract
def test_the_names_read_in_vllms_source_are_its_arguments():
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert known_arguments() == known
    assert SET_BY.keys() <= known
    assert rejection(["max_num_batched_tokens", "attention_backend"]) is None


def test_arguments_are_checked_without_vllm_and_torch():
    code = (
        "import sys; from actors.config import GenerationConfig as G; G(engine_args={'max_num_batched_tokens': 9}); "
        "print({'torch', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
