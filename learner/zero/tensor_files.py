"""Safetensors files that are written one tensor after the other, so that none but that one is held in host memory.

safetensors' own ``save_file`` takes all tensors of a file at once. What is written here is the same, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

WEIGHTS_PATTERN = "model{suffix}.safetensors"
MAX_FILE_BYTES = 50 * 10**9
"""Most bytes of weights in one file of an export: the default of transformers."""
CHUNK_BYTES = 64 << 20
"""What is brought to the host at a time."""
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""As the format names them, in safetensors' own order: the tensors of the last come first in a file."""

TensorMetadata = tuple[str, torch.dtype, tuple[int, ...]]
"""(name, dtype, shape)."""


class TensorFile:
    """One file. Every tensor that was announced must be put once, in any order, before it is closed."""

    def __init__(
        self, path: Path, announced: Iterable[TensorMetadata], metadata: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            metadata: text for the file's header.
        """
        ranks = list(DTYPES)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, dtype, shape in sorted(announced, key=lambda entry: (-ranks.index(entry[1]), entry[0])):
            first, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [first, end]}
            self._places[name] = first, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._path = path
        self._data_starts = 8 + len(text)
        self._file: BinaryIO = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor; it may be on any device.

        Raises:
            KeyError: it was not announced, or it has been written.
            RuntimeError: it has another size than was announced.
        """
        first, end = self._places.pop(name)
        if tensor.nbytes != end - first:
            raise RuntimeError(f"{self._path}: {name} has {tensor.nbytes} bytes, announced were {end - first}")
        self._file.seek(self._data_starts + first)
        for part in tensor.detach().contiguous().view(-1).view(torch.uint8).split(CHUNK_BYTES):
            self._file.write(part.cpu().numpy().data)

    def close(self) -> None:
        """Raises:
        RuntimeError: a tensor was announced and not put.
        """
        self._file.close()
        if self._places:
            raise RuntimeError(f"{self._path}: {next(iter(self._places))} was announced and not written")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class WeightFiles:
    """A model's weights as transformers saves them: one file, or several and an index where they are larger."""

    def __init__(
        self, folder: Path, announced: Iterable[TensorMetadata], max_file_bytes: int | str = MAX_FILE_BYTES
    ) -> None:
        """
        Args:
            max_file_bytes: also as text, such as 5GB.
        """
        weights = {name: (name, dtype, shape) for name, dtype, shape in announced}
        split = split_torch_state_dict_into_shards(
            {name: torch.empty(shape, dtype=dtype, device="meta") for name, dtype, shape in weights.values()},
            filename_pattern=WEIGHTS_PATTERN,
            max_shard_size=max_file_bytes,
        )
        self._file_of = split.tensor_to_filename
        self._files = {
            name: TensorFile(folder / name, [weights[tensor] for tensor in tensors], {"format": "pt"})
            for name, tensors in split.filename_to_tensors.items()
        }
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def put(self, name: str, tensor: Tensor) -> None:
        """As ``TensorFile.put``."""
        self._files[self._file_of[name]].put(name, tensor)

    def close(self) -> None:
        """As ``TensorFile.close``."""
        for file in self._files.values():
            file.close()
