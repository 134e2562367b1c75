"""What engines are started with on CPU and on GPU; the CPU's traps are avoided wherever an engine is started."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from actors.config import GenerationConfig
from actors.engine_options import CPU_KV_CACHE_BYTES, cpu_arguments, engine_arguments, environment
from actors.messages import EngineSpec
from support.paths import REPOSITORY

CPU = EngineSpec("folder", "float32", 512, ends=(2,), seed=2**31 + 5, backend="shm", use_gpu=False)
GPU = dataclasses.replace(CPU, backend="nccl", use_gpu=True, sleep_mode=True)


def test_on_cpu_prefills_stay_whole():
    for length, batched in ((512, 8192), (9000, 9000)):
        options = cpu_arguments(length)
        assert options["enable_chunked_prefill"] is False
        assert options["max_num_batched_tokens"] == batched
    arguments = engine_arguments(dataclasses.replace(CPU, max_length=9000), GenerationConfig())
    assert cpu_arguments(9000).items() <= arguments.items()


def test_an_engine_on_cpu():
    arguments = engine_arguments(CPU, GenerationConfig(max_concurrent_requests=7))
    assert (arguments["model"], arguments["dtype"], arguments["max_model_len"]) == ("folder", "float32", 512)
    assert (arguments["max_num_seqs"], arguments["seed"]) == (7, 5)
    assert arguments["kv_cache_memory_bytes"] == CPU_KV_CACHE_BYTES
    assert arguments["weight_transfer_config"] == {"backend": "shm"}
    assert not {"gpu_memory_utilization", "enable_sleep_mode"} & arguments.keys()


def test_an_engine_on_gpu_leaves_memory_and_batching_to_vllm():
    arguments = engine_arguments(GPU, GenerationConfig(gpu_memory_utilization=0.5))
    assert (arguments["gpu_memory_utilization"], arguments["enable_sleep_mode"]) == (0.5, True)
    assert arguments["weight_transfer_config"] == {"backend": "digesting-nccl"}
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill", "max_num_batched_tokens"} & arguments.keys()


@pytest.mark.parametrize(("spec", "default"), [(CPU, True), (GPU, False)])
def test_the_configuration_goes_before_the_defaults_of_the_device(spec: EngineSpec, default: bool):
    assert engine_arguments(spec, GenerationConfig())["enforce_eager"] is default
    for wanted in (True, False):
        assert engine_arguments(spec, GenerationConfig(enforce_eager=wanted))["enforce_eager"] is wanted
    assert engine_arguments(spec, GenerationConfig(kv_cache_bytes=99))["kv_cache_memory_bytes"] == 99


@pytest.mark.contract
def test_vllm_knows_every_argument():
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    config: dict[str, Any] = {"kv_cache_bytes": 99}
    assert all(engine_arguments(spec, GenerationConfig(**config)).keys() <= known for spec in (CPU, GPU))


def test_threads_are_bounded_on_cpu_alone():
    assert environment(use_gpu=False)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(use_gpu=True)
    assert environment(use_gpu=True).items() <= environment(use_gpu=False).items()


def test_an_actor_can_set_its_environment_before_torch_and_vllm_read_it():
    code = "import sys, actors.generator; print({'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
