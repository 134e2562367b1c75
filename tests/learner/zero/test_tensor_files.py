"""Files that are written tensor by tensor are safetensors' own, byte for byte, and never hold the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner.zero import tensor_files
from learner.zero.tensor_files import DTYPES, TensorFile, TensorMetadata, WeightFiles
from learner.zero.weights import metadata, named_weights
from support.models import save_llama


def announced(tensors: dict[str, torch.Tensor]) -> list[TensorMetadata]:
    return [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    values = torch.arange(-3, 4).repeat(3)
    found = {f"w.{i}.{dtype}": values.to(dtype)[: 7 + i] for i, dtype in enumerate(reversed(list(DTYPES)))}
    return found | {"b": torch.randn(4, 6).t(), "a": torch.tensor(2.5), "é": torch.zeros(0, 3), "c": torch.randn(3, 5)}


@pytest.mark.parametrize("meta", [None, {"format": "pt"}])
def test_a_file_is_byte_for_byte_safetensors_own(tmp_path, monkeypatch, meta):
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 24)
    tensors = tensors_of_every_dtype()
    with TensorFile(tmp_path / "ours", announced(tensors), meta) as file:
        for name in sorted(tensors, key=hash):
            file.put(name, tensors[name])
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs", meta)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_was_not_announced_or_does_not_come_is_an_error(tmp_path):
    weight = torch.zeros(4)
    file = TensorFile(tmp_path / "lacks", announced({"a": weight, "b": weight}))
    file.put("a", weight)
    with pytest.raises(RuntimeError, match="b was announced and not written"):
        file.close()
    file = TensorFile(tmp_path / "other", announced({"a": weight}))
    with pytest.raises(RuntimeError, match="a has 20 bytes, announced were 16"):
        file.put("a", torch.zeros(5))
    with pytest.raises(KeyError):
        file.put("c", weight)


def test_a_model_over_the_limit_is_split_as_transformers_splits_it(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "start", tied=True), dtype=torch.float32)
    limit = 100_000
    model.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    model.config.save_pretrained(tmp_path / "ours")
    files = WeightFiles(tmp_path / "ours", metadata(model), limit)
    for name, tensor in named_weights(model, 0):
        files.put(name, tensor)
    files.close()
    ours, theirs = (
        json.loads((tmp_path / which / "model.safetensors.index.json").read_text()) for which in ("ours", "theirs")
    )
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert len(set(ours["weight_map"].values())) > 2
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    for name, file in ours["weight_map"].items():
        assert name in load_file(tmp_path / "ours" / file)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_chunk_is_all_that_is_brought_to_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 1 << 10)
    weight, sizes = torch.randn(10_000), []
    with TensorFile(Path(tmp_path / "file"), announced({"w": weight})) as file:
        to_host = torch.Tensor.cpu
        monkeypatch.setattr(torch.Tensor, "cpu", lambda part: sizes.append(part.nbytes) or to_host(part))
        file.put("w", weight)
    assert max(sizes) == 1 << 10
    assert sum(sizes) == weight.nbytes
