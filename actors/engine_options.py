"""The options of every vLLM engine that this program starts: environment and arguments, by device.

Imports neither vLLM nor torch, which read the environment when they are imported.
"""

from __future__ import annotations

from typing import Any

from actors.config import GenerationConfig
from actors.messages import EngineSpec
from contracts.errors import UserError

QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
ON_CPU = {
    # With more than one OpenMP thread beside other work on the cores, generation all but stops.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine computes in the actor's own process (actors/inprocess.py).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ours are unique, and drawing random ones costs a tenth of a short request.
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1",
}
BATCH_INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}
"""Kernels that give a request the same numbers whatever else is in the batch. vLLM has them for GPUs alone; on CPU a
request's numbers do not depend on its batch."""
WITH_HANDLES = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
"""CUDA IPC's handles are no plain data: vLLM serializes them as Python objects on the way to its own processes."""
CPU_KV_CACHE_BYTES = 256 << 20
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Room for adapters that vLLM can make."""
BATCHED_TOKENS = 8192
"""Tokens of one step of a CPU engine, unless a single prompt may be longer."""
WORKER_EXTENSION = "actors.weights.receivers.WeightReceiver"
UNPACKED_EXTENSION = "actors.weights.unpacked.WeightReceiver"
"""On CPU, the same in workers whose linear weights stay as they are published."""
WITH_DIGESTS = ("nccl", "ipc")
"""Backends of vLLM's own, whose receivers are replaced by ours that note digests (actors/weights/digesting.py)."""


def environment(use_gpu: bool, batch_invariant: bool = False, *, over_ipc: bool = False) -> dict[str, str]:
    """Environment variables, to be set before vLLM is imported."""
    if not use_gpu:
        return QUIET | ON_CPU
    return QUIET | (BATCH_INVARIANT if batch_invariant else {}) | (WITH_HANDLES if over_ipc else {})


def cpu_arguments(max_length: int, kv_cache_bytes: int | None = None) -> dict[str, Any]:
    """What vLLM's ``EngineArgs`` need on CPU for prompts of up to ``max_length`` tokens."""
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": kv_cache_bytes or CPU_KV_CACHE_BYTES,
        # A seeded request whose prefill is split crashes the CPU engine: prefills stay whole.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_length, BATCHED_TOKENS),
    }


def engine_arguments(spec: EngineSpec, config: GenerationConfig) -> dict[str, Any]:
    """Arguments of vLLM's ``EngineArgs`` for a generation actor.

    Raises:
        UserError: ``generation.engine_args`` has one that is set here, or vLLM has no adapters of this rank.
    """
    arguments: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "skip_tokenizer_init": True,
        "max_model_len": spec.max_length,
        "max_num_seqs": config.max_concurrent_requests,
        "seed": spec.seed % (1 << 31),
        "enable_prefix_caching": config.prefix_caching,
        "tensor_parallel_size": config.tensor_parallel,
        "weight_transfer_config": {"backend": receiver_of(spec.backend)},
        "worker_extension_cls": WORKER_EXTENSION,
        "trust_remote_code": spec.trust_remote_code,
        "disable_log_stats": True,
    }
    if spec.adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": _room_for(spec.adapters.rank),
            # Left to itself, vLLM also prepares the head, and then fails to score several prompts at a time.
            "lora_target_modules": list(spec.adapters.layers),
        }
    if config.tensor_parallel > 1:
        # Left to itself, vLLM takes Ray's executor inside a placement group, which wants a bundle for every GPU.
        arguments["distributed_executor_backend"] = "mp"
    if spec.use_gpu:
        arguments |= {
            "enforce_eager": False,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_sleep_mode": spec.sleep_mode,
        }
        if config.kv_cache_bytes:
            arguments["kv_cache_memory_bytes"] = config.kv_cache_bytes
    else:
        arguments |= cpu_arguments(spec.max_length, config.kv_cache_bytes)
        if not config.packed_weights:
            arguments["worker_extension_cls"] = UNPACKED_EXTENSION
    if config.enforce_eager is not None:
        arguments["enforce_eager"] = config.enforce_eager
    for name in arguments.keys() & config.engine_args.keys():
        raise UserError(f"generation.engine_args.{name}: this run sets it to {arguments[name]}; leave it out")
    return arguments | config.engine_args


def _room_for(rank: int) -> int:
    """The smallest of vLLM's that holds adapters of this rank."""
    for room in LORA_RANKS:
        if rank <= room:
            return room
    raise UserError(
        f"model.lora.rank {rank}: vLLM applies adapters up to rank {LORA_RANKS[-1]}; set weights.lora=merged to "
        "publish merged weights"
    )


def receiver_of(backend: str) -> str:
    """Under which name vLLM's factory has the receiver of a backend."""
    return f"digesting-{backend}" if backend in WITH_DIGESTS else backend
