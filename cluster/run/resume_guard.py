"""What a resumed run may change, and what would make it another run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from cluster.config.run_config import RunConfig
from cluster.config.validation_message import shown
from cluster.storage.run_folder import saved_values
from contracts.errors import UserError

FREE = (
    "name",
    "output_dir",
    "evaluation",
    "logging",
    "checkpoint",
    "cluster",
    "recovery",
    # Rows are compared by their token ids.
    "data",
    # How long, how fast and where; not what is computed.
    "learner.steps",
    "learner.epochs",
    "learner.tokens_per_batch",
    "learner.logits_chunk",
    "learner.self_check",
    "learner.activation_offload",
    "learner.cpus_per_rank",
    "learner.threads_per_rank",
    "learner.collective_timeout_s",
    "learner.skipped_steps",
    "generation.actors",
    "generation.max_concurrent_requests",
    "generation.kv_cache_bytes",
    "generation.gpu_memory_utilization",
    "generation.tensor_parallel",
    "generation.packed_weights",
    "generation.engine_args",
    "buffer.shards",
    "weights.backend",
    "weights.timeout_s",
    "weights.parity_every",
    "weights.parity_factor",
)
"""Keys, and whole sections, that may differ from the checkpoint's."""
BY_THE_CHECKPOINT = ("learner.ranks", "learner.zero_stage", "optimizer.name", "buffer.capacity")
"""Keys that the checkpoint's own reader judges: it knows what it can convert."""


def validate_same_run(config: RunConfig, checkpoint: Path, allowed: Collection[str]) -> list[str]:
    """Compare the config with the one that the checkpoint was made with.

    Args:
        allowed: keys whose change is meant.

    Returns:
        The changes that are allowed, as `key: old -> new`.

    Raises:
        UserError: a key differs that makes it another run, or one is allowed that does not differ.
    """
    changed = changes(saved_values(checkpoint / "config.yaml"), config.model_dump(mode="json"))
    if idle := [key for key in allowed if key not in changed]:
        raise UserError(f"--allow-change {idle[0]}: it is what the checkpoint was made with, or no key of a config")
    rejected = {key: values for key, values in changed.items() if key not in allowed and not _is_free(key)}
    if rejected:
        (key, (old, new)), others = next(iter(rejected.items())), list(rejected)[1:]
        more = f" (also changed: {', '.join(others)})" if others else ""
        raise UserError(
            f"{key} {shown(new)}: {checkpoint} was made with {shown(old)}; resume with that, or with --allow-change "
            f"{key} if the change is meant{more}"
        )
    return [f"{key}: {shown(old)} -> {shown(new)}" for key, (old, new) in changed.items()]


def validate_same_data(saved: str, found: str, checkpoint: Path, path: str | None, allowed: Collection[str]) -> None:
    """Compare fingerprints of the training data.

    Raises:
        UserError: they differ.
    """
    where = f"data.path {path}" if path else "data.sources"
    if saved != found and "data.path" not in allowed:
        raise UserError(
            f"{where}: its rows are not those that {checkpoint} was trained on; resume with those, or with "
            "--allow-change data.path if the change is meant"
        )


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """(old, new) by dotted key of everything that differs; a key that one side does not know is no change."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in new.keys() & old.keys():
        before, after = old[key], new[key]
        if isinstance(before, dict) and isinstance(after, dict) and key != "engine_args":
            changed |= changes(before, after, f"{prefix}{key}.")
        elif before != after:
            changed[f"{prefix}{key}"] = (before, after)
    return dict(sorted(changed.items()))


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in (*FREE, *BY_THE_CHECKPOINT))
