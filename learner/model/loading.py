"""Loads the model that is trained: from a checkpoint or from scratch, whole or with LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from contracts.errors import UserError, first_line
from learner.config import ModelConfig
from learner.model.adapters import validate_mergeable
from learner.model.dropout import disable_dropout
from learner.model.packing import PackedBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EMBEDDING_MULTIPLE = 64
"""Embeddings that are enlarged get a multiple of this many rows: tensor cores work on aligned blocks."""
NEW_ROW_SPREAD = 0.01
"""Spread of new embeddings around the mean of the old ones, in standard deviations of the old ones."""


def load_model(config: ModelConfig, seed: int, vocabulary: int = 0, *, values: bool = True) -> nn.Module:
    """A causal language model in training mode, in the compute dtype.

    Args:
        vocabulary: rows that the embeddings must have; more are left as they are.
        values: False makes the model's skeleton on torch's meta device, which takes no memory; its config is read, its
            weights are not.

    Raises:
        UserError: the path is no causal language model that transformers knows, or weights are missing.
    """
    disable_progress_bar()  # every rank would draw its own
    try:
        if not values:
            model = _skeleton(config)
        elif config.from_scratch:
            torch.manual_seed(seed)
            model = _from_config(config)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                config.path,
                dtype=DTYPES[config.dtype],
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
            model, report = loaded
            _reject_missing_weights(config.path, report)
            _reject_values_that_are_no_numbers(config.path, model)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"model.path {config.path}: not loadable as a causal language model: {reason}") from error
    torch.manual_seed(seed)
    enlarge_embeddings(model, vocabulary)
    if config.disable_dropout:
        disable_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    torch.manual_seed(seed)
    return add_adapters(model, config) if config.lora else model


def _from_config(config: ModelConfig) -> PreTrainedModel:
    """With random weights."""
    architecture = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    # Not model.to(dtype): rotary frequencies must stay fp32.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        architecture, dtype=DTYPES[config.dtype], trust_remote_code=config.trust_remote_code
    )
    return model


def _skeleton(config: ModelConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return _from_config(config)


@torch.no_grad()
def enlarge_embeddings(model: PreTrainedModel, vocabulary: int) -> None:
    """Give input and output embeddings at least ``vocabulary`` rows.

    A new row is the mean of the old ones, so that a new token is about as likely as an average one, with a little
    noise from torch's generator, so that no two are the same (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    transformers' own way draws from the covariance, which takes minutes for a large vocabulary.
    """
    old = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if vocabulary <= old:
        return
    model.resize_token_embeddings(vocabulary, pad_to_multiple_of=EMBEDDING_MULTIPLE, mean_resizing=False)
    layers: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    if layers[0].weight.is_meta:
        return  # a skeleton: the rows' values are rank 0's
    # Tied ones are one parameter, under two names.
    for rows in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
        known = rows[:old].float()
        noise = torch.randn(rows[old:].shape) * known.std(0) * NEW_ROW_SPREAD
        rows[old:] = (known.mean(0) + noise).to(rows.dtype)


def validate_length(path: str, config: PreTrainedConfig, max_length: int) -> None:
    """The model must have a position for every token.

    Raises:
        UserError: sequences of ``max_length`` tokens are longer than the model's positions.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and max_length > positions:
        raise UserError(f"data.max_length {max_length}: {path} has max_position_embeddings {positions}; at most that")


def validate_token_ids(path: str, batches: Iterable[PackedBatch], vocabulary: int) -> None:
    """The model must have an embedding for every token.

    Raises:
        UserError: a token id is ``vocabulary`` or more.
    """
    largest = max((int(batch.input_ids.max()) for batch in batches), default=0)
    if largest >= vocabulary:
        raise UserError(
            f"model.path {path}: token id {largest} is outside its vocabulary of {vocabulary}; the tokenizer is "
            "another model's"
        )


def _reject_missing_weights(path: str, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"model.path {path}: the checkpoint lacks {len(missing)} weights, the first is {missing[0]}")


def _reject_values_that_are_no_numbers(path: str, model: nn.Module) -> None:
    """Loss, gradients and generated tokens of such a model mean nothing, and no step would say why."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"model.path {path}: {name} has values that are NaN or infinite: the checkpoint is damaged")


def add_adapters(model: PreTrainedModel, config: ModelConfig) -> nn.Module:
    """The model with the adapters of ``config.lora``.

    Raises:
        UserError: they don't fit it, or can't be merged.
    """
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    lora = config.lora
    widest = max(min(weight.shape[-2:]) for weight in model.parameters() if weight.dim() > 1)
    if lora.rank > widest:
        raise UserError(f"model.lora.rank {lora.rank}: no weight of the model has a rank above {widest}: at most that")
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    if config.gradient_checkpointing:
        # Checkpointed blocks see no trainable input otherwise: the embedding is frozen.
        model.enable_input_require_grads()
    try:
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=modules,
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=False,  # their fp32 masters are DeepSpeed's
        )
    except ValueError as error:
        raise UserError(f"model.lora.target_modules {lora.target_modules}: {first_line(error)}") from error
    validate_mergeable(adapted)
    return adapted
