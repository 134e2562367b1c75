"""What a run's configuration names and nothing is found of: told by looking for it, without reading it."""

from __future__ import annotations

from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.data.files import kind
from cluster.data.locations import only_local, reject_absent
from contracts.errors import UserError


def reject_absent_paths(config: RunConfig) -> None:
    """
    Args:
        config: with resolved paths.

    Raises:
        UserError: a file or folder is not there. A name that may be on the hub passes.
    """
    reject_absent(config.model.path, "model.path")
    if config.model.tokenizer:
        reject_absent(config.model.tokenizer, "model.tokenizer")
    template = config.data.chat_template
    if template and not Path(template).is_file():
        raise UserError(f"data.chat_template {template}: no such file")
    data = config.data
    named = [(f"data.sources.{i}.path", source.path) for i, source in enumerate(data.sources)]
    named += [("data.path", data.path)] if data.path else []
    named += [("data.held_out", data.held_out)] if isinstance(data.held_out, str) else []
    for key, path in named:
        if not Path(path).exists() and (only_local(path) or kind(Path(path)) is not None):
            raise UserError(f"{key} {path}: no such file or folder")
