"""Loads published weights straight into the layers of a CPU engine.

vLLM's own reload takes every layer apart, builds it anew, lets its loaders copy each weight and packs the copy. What is
published lies in the layers' own order, so a layer can be packed from the published bytes themselves. That needs to
know what vLLM makes of a model; so a model is only loaded this way after vLLM has once loaded it its own way and every
layer was found to compute with the weights that would have been given to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.weights.parallel_copy import copy_all, in_parallel

TOLERANCE = 0.02
"""Largest relative error of a layer's output against torch's own; bf16 has half of it, a wrong weight 50 times."""


@dataclass(frozen=True)
class _Packed:
    """A linear layer of which vLLM keeps only what its kernel computes with."""

    layer: Any
    unpacked: Tensor
    """The weight's shape and dtype before it was packed (on torch's meta device)."""
    sources: tuple[str, ...]
    """Published weights, which make it one below the other."""

    def load(self, published: dict[str, Tensor]) -> None:
        self.layer.weight = nn.Parameter(_whole(published, self.sources), requires_grad=False)
        self.layer.quant_method.process_weights_after_loading(self.layer)
        assert not self.layer.weight.numel()  # as before: nothing of the published bytes is kept


@dataclass(frozen=True)
class _Copied:
    """A parameter that is computed with as it is."""

    parameter: Tensor
    sources: tuple[str, ...]


class DirectLoad:
    """Where each published weight goes in a model of vLLM's."""

    def __init__(self, packed: list[_Packed], copied: list[_Copied], heads: list[Any]) -> None:
        self._packed, self._copied, self._heads = packed, copied, heads

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> DirectLoad | None:
        """None: the model has something in it that only vLLM's own reload knows how to load."""
        from vllm.model_executor.layers.attention import Attention
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        wanted = set(names)
        taken: list[str] = []
        together = getattr(model, "packed_modules_mapping", {})

        def sources(layer: str, parameter: str) -> tuple[str, ...]:
            parent, _, own = layer.rpartition(".")
            found = tuple(f"{parent}.{part}.{parameter}".lstrip(".") for part in together.get(own, (own,)))
            taken.extend(found)
            return found

        packed: list[_Packed] = []
        copied: list[_Copied] = []
        embeddings: list[Any] = []
        for name, layer in model.named_modules():
            method, left = getattr(layer, "quant_method", None), dict(layer.named_parameters(recurse=False))
            if type(method) is UnquantizedLinearMethod:
                if not layer.weight.numel():  # a kernel that keeps the weight computes with it as it is
                    del left["weight"]
                    unpacked, _ = get_layerwise_info(layer).restore_metadata
                    packed.append(_Packed(layer, unpacked["weight"], sources(name, "weight")))
            elif type(method) is UnquantizedEmbeddingMethod:
                embeddings.append(layer)
            elif method is not None:
                return None
            elif hasattr(layer, "process_weights_after_loading") and type(layer) is not Attention:
                return None  # it derives something from its weights, as multi-head latent attention does
            for parameter, tensor in left.items():
                # A tied head shows the embedding's parameter a second time.
                if tensor.dim() and all(tensor is not known.parameter for known in copied):
                    copied.append(_Copied(tensor, sources(name, parameter)))
        if len(taken) != len(set(taken)) or set(taken) != wanted:
            return None
        head = getattr(model, "lm_head", None)
        # vLLM packs every embedding, and multiplies by the head alone.
        return cls(packed, copied, [layer for layer in embeddings if layer is head or head not in embeddings])

    @torch.no_grad()
    def agrees(self, published: dict[str, Tensor]) -> bool:
        """Whether the model computes with ``published``, as far as each layer shows."""
        for copied in self._copied:
            whole, kept = _whole(published, copied.sources), copied.parameter
            if (kept.dtype, kept.shape[1:]) != (whole.dtype, whole.shape[1:]) or not kept.is_contiguous():
                return False
            if not torch.equal(kept[: len(whole)], whole):
                return False
        for head in self._heads:
            if not _computes_with(head, head.weight):
                return False
        for packed in self._packed:
            whole, unpacked = _whole(published, packed.sources), packed.unpacked
            if (unpacked.dtype, unpacked.shape) != (whole.dtype, whole.shape):
                return False
            if not _computes_with(packed.layer, whole):
                return False
        return True

    def load(self, published: dict[str, Tensor]) -> None:
        """Replace all weights; ``published`` may change afterwards."""
        wholes = [(copied.parameter, _whole(published, copied.sources)) for copied in self._copied]
        copy_all((parameter[: len(whole)], whole) for parameter, whole in wholes)  # vLLM pads vocabularies
        packing = [partial(head.quant_method.process_weights_after_loading, head) for head in self._heads]
        packing += [partial(packed.load, published) for packed in self._packed]
        in_parallel(lambda pack: pack(), packing)


def _computes_with(layer: Any, weight: Tensor) -> bool:
    probe = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    expected = F.linear(probe, weight).float()
    error = layer.cpu_linear(probe, layer.weight, None).float() - expected
    return bool(error.norm() <= TOLERANCE * expected.norm())


def _whole(published: dict[str, Tensor], sources: tuple[str, ...]) -> Tensor:
    """The sources as one tensor: a view where they lie one after the other, as the parts of a layer mostly do."""
    parts = [published[name] for name in sources]
    first = parts[0]
    if len(parts) == 1:
        return first
    end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(parts)
        end += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
