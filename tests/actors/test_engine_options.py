"""What engines are started with on CPU and on GPU; the CPU's traps are avoided wherever an engine is started."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any, get_args

import pytest

from actors.config import GenerationConfig
from actors.engine_options import CPU_KV_CACHE_BYTES, LORA_RANKS, cpu_arguments, engine_arguments, environment
from actors.messages import Adapters, EngineSpec
from contracts.errors import UserError
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


def test_workers_whose_weights_stay_unpacked_are_told_so_by_their_extension():
    unpacked = GenerationConfig(packed_weights=False)
    assert engine_arguments(CPU, unpacked)["worker_extension_cls"] == "actors.weights.unpacked.WeightReceiver"
    for spec, config in ((CPU, GenerationConfig()), (GPU, unpacked)):
        assert engine_arguments(spec, config)["worker_extension_cls"] == "actors.weights.receivers.WeightReceiver"


def test_only_engines_that_take_cuda_ipc_handles_serialize_objects():
    name = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    assert name in environment(use_gpu=True, over_ipc=True)
    assert name not in environment(use_gpu=True) | environment(use_gpu=False, over_ipc=True)


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


@pytest.mark.parametrize("spec", [CPU, GPU])
def test_a_tensor_parallel_engine_starts_its_own_processes(spec: EngineSpec):
    assert "distributed_executor_backend" not in engine_arguments(spec, GenerationConfig())
    arguments = engine_arguments(spec, GenerationConfig(tensor_parallel=2))
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (2, "mp")


@pytest.mark.contract
def test_vllm_knows_every_argument():
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    config: dict[str, Any] = {"kv_cache_bytes": 99, "tensor_parallel": 2}
    assert all(engine_arguments(spec, GenerationConfig(**config)).keys() <= known for spec in (CPU, GPU))


@pytest.mark.contract
def test_vllm_left_to_itself_takes_rays_executor_in_a_placement_group_and_ours_when_told():
    """When the first half fails, the argument has become superfluous."""
    import inspect

    from vllm.config.parallel import ParallelConfig

    source = inspect.getsource(ParallelConfig)
    assert "if self.distributed_executor_backend is None and self.world_size_across_dp > 1:" in source
    assert "if get_current_placement_group():" in source
    told = ParallelConfig(tensor_parallel_size=2, distributed_executor_backend="mp")
    assert told.distributed_executor_backend == "mp"


def test_what_a_user_passes_on_reaches_vllm():
    config = GenerationConfig(engine_args={"max_num_batched_tokens": 16384})
    assert engine_arguments(GPU, config)["max_num_batched_tokens"] == 16384


def test_what_is_set_for_the_device_is_not_overridden_in_silence():
    config = GenerationConfig(engine_args={"max_num_batched_tokens": 64})
    line = "^generation.engine_args.max_num_batched_tokens: this run sets it to 8192; leave it out$"
    with pytest.raises(UserError, match=line):
        engine_arguments(CPU, config)


def test_batch_invariance_is_asked_for_on_gpu_alone():
    assert environment(use_gpu=True, batch_invariant=True)["VLLM_BATCH_INVARIANT"] == "1"
    for variables in (environment(use_gpu=True), environment(use_gpu=False, batch_invariant=True)):
        assert "VLLM_BATCH_INVARIANT" not in variables


@pytest.mark.contract
def test_vllm_reads_the_switch_of_batch_invariance(monkeypatch):
    from vllm import envs

    for value, read in (("1", True), ("0", False)):
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", value)
        assert envs.environment_variables["VLLM_BATCH_INVARIANT"]() is read


def test_threads_are_bounded_on_cpu_alone():
    assert environment(use_gpu=False)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(use_gpu=True)
    assert environment(use_gpu=True).items() <= environment(use_gpu=False).items()


def test_an_actor_can_set_its_environment_before_torch_and_vllm_read_it():
    code = "import sys, actors.generator; print({'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (48, 64), (512, 512)])
def test_engines_have_room_for_adapters_that_come_alone(rank, room):
    spec = dataclasses.replace(CPU, adapters=Adapters(rank, ("q_proj", "down_proj")))
    arguments = engine_arguments(spec, GenerationConfig())
    chosen = {name: value for name, value in arguments.items() if "lora" in name}
    assert chosen == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": room,
        "lora_target_modules": ["q_proj", "down_proj"],
    }
    assert not any("lora" in name for name in engine_arguments(CPU, GenerationConfig()))


def test_adapters_that_are_too_large_for_vllm_are_rejected_with_the_remedy():
    spec = dataclasses.replace(CPU, adapters=Adapters(513, ("q_proj",)))
    with pytest.raises(UserError, match=r"model.lora.rank 513: .* up to rank 512; set weights.lora=merged"):
        engine_arguments(spec, GenerationConfig())


@pytest.mark.contract
def test_vllm_has_room_of_these_sizes():
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == LORA_RANKS
