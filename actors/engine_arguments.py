"""Which of vLLM's arguments a user may pass through (``generation.engine_args``): all that a run does not set itself.

vLLM is not imported: a config is validated in a process that must stay free of it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

SET_BY = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "skip_tokenizer_init": "the run: engines work on token ids",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "seed": "seed",
    "max_model_len": "data.max_length",
    "max_num_seqs": "generation.max_concurrent_requests",
    "enable_prefix_caching": "generation.prefix_caching",
    "tensor_parallel_size": "generation.tensor_parallel",
    "distributed_executor_backend": "generation.tensor_parallel",
    "kv_cache_memory_bytes": "generation.kv_cache_bytes",
    "gpu_memory_utilization": "generation.gpu_memory_utilization",
    "enforce_eager": "generation.enforce_eager",
    "enable_sleep_mode": "cluster.colocate",
    "weight_transfer_config": "weights.backend",
    "worker_extension_cls": "the run: it carries the weight transfer",
    "enable_lora": "weights.lora",
    "max_loras": "weights.lora",
    "max_lora_rank": "model.lora.rank",
    "lora_target_modules": "model.lora.target_modules",
    "disable_log_stats": "the run",
    # Weights are sent to tensor_parallel workers of every engine, whole and by the names of the checkpoint.
    "pipeline_parallel_size": "nothing: published weights reach tensor-parallel workers alone",
    "data_parallel_size": "generation.actors",
    "load_format": "nothing: the first version published has the layout of the starting model",
    "quantization": "nothing: weights are published in model.dtype",
}
"""Arguments that are rejected, and what decides on them."""


def rejection(names: Iterable[str]) -> str | None:
    """Why the first unacceptable one of ``names`` can't be passed on; None where all can."""
    known = known_arguments()
    for name in names:
        if name in SET_BY:
            return f"{name} is set by {SET_BY[name]}"
        if known is not None and name not in known:
            close = get_close_matches(name, known - SET_BY.keys(), n=1)
            return f"{name} is no argument of vLLM's" + (f"; did you mean {close[0]}?" if close else "")
    return None


@lru_cache
def known_arguments() -> frozenset[str] | None:
    """The fields of the installed vLLM's ``EngineArgs``, read in its source; None where vLLM is not installed."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return None
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [field.target for field in node.body if isinstance(field, ast.AnnAssign)]
            return frozenset(target.id for target in fields if isinstance(target, ast.Name))
    return None
