"""Looks into the files of a checkpoint's weights, without reading more than names, dtypes and some rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

LFS_POINTER = b"version https://git-lfs"
TRAINABLE = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
"""dtypes of weights, as safetensors and torch name them. Others are quantised, or hold no weight."""


def quantised_weight(folder: Path, names: set[str]) -> tuple[str, str] | None:
    """(name, dtype) of the first of these weights that is stored as integers or in 8 bits; None where none is."""
    return next(((name, dtype) for name, dtype in _dtypes(folder) if name in names and dtype not in TRAINABLE), None)


def first_rows(folder: Path, name: str, rows: int) -> torch.Tensor | None:
    """The first rows of a weight in a folder of safetensors; None where it has none of this name."""
    file = folder / SAFE_WEIGHTS_NAME
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shard = _shards(folder / SAFE_WEIGHTS_INDEX_NAME).get(name)
        if shard is None:
            return None
        file = folder / shard
    if not file.is_file():
        return None
    with safe_open(file, framework="pt", device="cpu") as tensors:
        if name not in tensors.keys():  # noqa: SIM118  # no mapping
            return None
        found: torch.Tensor = tensors.get_slice(name)[:rows]
        return found


def lfs_pointer(folder: Path) -> Path | None:
    """The first file that Git LFS has left a pointer of, in place of the weights."""
    for file in (*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))):
        with file.open("rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                return file
    return None


def _dtypes(folder: Path) -> Iterator[tuple[str, str]]:
    """Of the files that transformers would load: safetensors where there are any, torch's own format otherwise."""
    safe = _files(folder, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    for file in safe:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                yield name, str(tensors.get_slice(name).get_dtype())
    for file in [] if safe else _files(folder, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        for name, tensor in torch.load(file, map_location="meta", weights_only=True).items():
            yield name, str(tensor.dtype).removeprefix("torch.")


def _files(folder: Path, single: str, index: str) -> list[Path]:
    if (folder / index).is_file():
        return [folder / name for name in sorted(set(_shards(folder / index).values()))]
    return [folder / single] if (folder / single).is_file() else []


def _shards(index: Path) -> dict[str, str]:
    shards: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return shards
