"""Weights in safetensors files, copied tensor by tensor into another dtype and another division into files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from contracts.errors import UserError
from learner.zero.tensor_files import DTYPES as NAMES
from learner.zero.tensor_files import TensorFile, TensorMetadata, WeightFiles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the names of the option."""
BY_NAME = {name: dtype for dtype, name in NAMES.items()}
"""By the names of safetensors."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def copy_weights(source: Path, target: Path, dtype: torch.dtype | None, max_file_size: int | str) -> int:
    """Write the weights of a model folder into another; returns their bytes. One tensor is held at a time.

    Args:
        dtype: of floating-point weights; None leaves all as they are.
        max_file_size: bytes, or text such as 5GB.

    Raises:
        UserError: a value is too large for float16.
    """
    files = sorted(source.glob("*.safetensors"))
    announced = [entry for file in files for entry in _announced(file, dtype)]
    written = WeightFiles(target, announced, max_file_size)
    for name, tensor in _converted(files, dtype):
        written.put(name, tensor)
    written.close()
    return _bytes(announced)


def copy_adapter(source: Path, target: Path, dtype: torch.dtype | None) -> int:
    """As ``copy_weights``, of an adapter's one file."""
    file = source / ADAPTER_WEIGHTS
    announced = _announced(file, dtype)
    with TensorFile(target / ADAPTER_WEIGHTS, announced, {"format": "pt"}) as written:
        for name, tensor in _converted([file], dtype):
            written.put(name, tensor)
    return _bytes(announced)


def validate_file_size(size: str) -> None:
    """Raises:
    UserError: it is no size.
    """
    if not re.fullmatch(r"\s*0*[1-9]\d*(\.\d+)?\s*[KMGT]B\s*", size, re.IGNORECASE):
        raise UserError(f"--max-shard-size {size}: write a size as 5GB or 500MB")


def _announced(file: Path, dtype: torch.dtype | None) -> list[TensorMetadata]:
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
    return [(name, _target(BY_NAME[part.get_dtype()], dtype), tuple(part.get_shape())) for name, part in slices.items()]


def _target(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted and dtype.is_floating_point else dtype


def _converted(files: list[Path], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.offset_keys():
                tensor = opened.get_tensor(name)
                converted = tensor.to(_target(tensor.dtype, dtype))
                if dtype is torch.float16 and bool(converted.isinf().any() & ~tensor.isinf().any()):
                    raise UserError(f"--dtype float16: {name} has values beyond 65504: use bfloat16 or float32")
                yield name, converted


def _bytes(announced: list[TensorMetadata]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in announced)
