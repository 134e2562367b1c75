"""What a user may add to DeepSpeed's configuration (``learner.deepspeed``), and how it is merged into ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

SET_BY = {
    "train_batch_size": "learner.batch_size",
    "train_micro_batch_size_per_gpu": "learner.tokens_per_batch",
    "gradient_accumulation_steps": "learner.tokens_per_batch",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "the section optimizer",
    "scheduler": "optimizer.schedule",
    "bf16.enabled": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types.grad_accum_dtype": "model.dtype",
    "zero_allow_untested_optimizer": "the run",
    "zero_force_ds_cpu_optimizer": "the run",
    "steps_per_print": "the run",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.offload_optimizer": "learner.offload_optimizer",
    # EMA and reference are swapped into the shards in place, so no second copy of a weight may lie anywhere.
    "zero_optimization.offload_param": "nothing: EMA and reference are swapped into the weights where they lie",
    "zero_optimization.zero_hpz_partition_size": "nothing: EMA and reference are swapped in, and copies would be stale",
    "zero_optimization.stage3_param_persistence_threshold": "the run: no weight stays gathered between steps",
    "zero_optimization.stage3_model_persistence_threshold": "the run: no weight stays gathered between steps",
    "sequence_parallel_size": "nothing: a row stays on one rank; see Long sequences in docs/learner.md",
    "zero_optimization.compute_grad_norm": "the run: the gradient norm is a metric",
}
"""Dotted keys that are rejected, with everything below them, and what decides on them."""

KNOWN = frozenset(
    {
        "aio",
        "bf16",
        "comms_logger",
        "communication_data_type",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "sparse_gradients",
        "wall_clock_breakdown",
        "zero_optimization",
    }
)
"""Sections that make sense beside ours. DeepSpeed itself passes over a top-level key that it does not know."""


def rejection(added: Mapping[str, Any]) -> str | None:
    """Why the first unacceptable key of ``added`` can't be passed on; None where all can."""
    for key in added:
        if key not in KNOWN and key not in SET_BY:
            close = get_close_matches(str(key), KNOWN, n=1)
            return f"{key} is no section that can be added" + (f"; did you mean {close[0]}?" if close else "")
    for key in _keys(added):
        if key in SET_BY:
            return f"{key} is set by {SET_BY[key]}"
    return None


def merged(ours: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """``ours`` with what ``added`` has beside it, section by section."""
    result = dict(ours)
    for key, value in added.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key, of sections too."""
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
