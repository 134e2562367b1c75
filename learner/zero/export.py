"""Writes policy and EMA as Hugging Face folders, layer by layer as they are gathered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from learner.model.adapters import is_adapter
from learner.model.forward import causal_model
from learner.zero.ema import Ema
from learner.zero.shards import Shards, gathered
from learner.zero.tensor_files import WeightFiles
from learner.zero.weights import WeightMetadata, metadata, named_weights


def export(folder: Path, module: nn.Module, shards: Shards, ema: Ema, ends: Sequence[int]) -> None:
    """Whole weights in the model's dtype in policy/ and ema/, written by rank 0. All ranks together.

    Args:
        ends: token ids that end a response, for generation_config.json.
    """
    _write(folder / "policy", module, shards.zero_stage, ends)
    with shards.holding(ema.values):
        _write(folder / "ema", module, shards.zero_stage, ends)
    dist.barrier()


def _write(folder: Path, module: nn.Module, zero_stage: int, ends: Sequence[int]) -> None:
    writes = dist.get_rank() == 0
    weights = named_weights(module, zero_stage)
    if writes:
        save_model(folder, causal_model(module), metadata(module), weights, ends)
    for _ in weights:  # rank 0 has left none
        pass
    if hasattr(module, "peft_config"):
        adapters = [p for name, p in module.named_parameters() if is_adapter(name)]
        adapted: Any = module
        with gathered(adapters, zero_stage):
            if writes:
                adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)


def save_model(
    folder: Path,
    model: PreTrainedModel,
    announced: Sequence[WeightMetadata],
    weights: Iterable[tuple[str, Tensor]],
    ends: Sequence[int],
) -> None:
    """The model with other weights, which have a checkpoint's names and shapes already, and a generation_config that
    stops where the model was trained to stop.

    Args:
        announced: what ``weights`` yields.
        weights: written as they come; one at a time is held in host memory.
        ends: as ``export`` has them.
    """
    _save_configuration(folder, model, ends)
    unwanted = set(model._keys_to_ignore_on_save or ())
    files = WeightFiles(folder, [weight for weight in announced if weight[0] not in unwanted])
    for name, tensor in weights:
        if name not in unwanted:
            files.put(name, tensor)
    files.close()


def _save_configuration(folder: Path, model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Everything but weights: configurations, and the code of a model that brings its own.

    transformers rejects on saving what it accepts on loading: a generation_config with a temperature and without
    ``do_sample``, as Llama 2 and others come with. So that file is written here, with all that the start's has.
    """
    settings: GenerationConfig | None = getattr(model, "generation_config", None)
    if settings is None:
        model.save_pretrained(folder, state_dict={}, save_original_format=False)
        return
    if ends:
        settings.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict={}, save_original_format=False)
    finally:
        model.generation_config = settings
    settings.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])
