"""Model folders as people bring them: copies of a sound one with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def copy_of(source: Path | str, target: Path, **config: Any) -> Path:
    """A copy of a model folder with other values in its config.json; None leaves a field out."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


def with_weights(source: Path | str, target: Path, change: Callable[[Weights], Weights], **config: Any) -> Path:
    """A copy whose weights are what ``change`` makes of them."""
    folder = copy_of(source, target, **config)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_file(source: Path | str, target: Path, name: str, content: object) -> Path:
    """A copy with another file in it: text as it is, anything else as JSON."""
    folder = copy_of(source, target)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
