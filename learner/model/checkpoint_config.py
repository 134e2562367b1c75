"""What kind of checkpoint a path holds, told from its configuration alone: no weight is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from contracts.errors import UserError, all_lines
from learner.model.quiet import quiet
from learner.model.sizes import wrong_size

QUANTISED_WEIGHTS = ("gptq_config", "quantization_config", "compression_config")
"""Where configurations say that weights are quantised."""


def read_config(path: str, *, trust_remote_code: bool = False, key: str = "model.path") -> PreTrainedConfig:
    """The configuration of the model in a folder or on the hub.

    Args:
        key: the option that names it, for the message.

    Raises:
        UserError: the folder holds an adapter or no configuration; the configuration can't be used: unknown to
            transformers, not JSON, or with a value of the wrong type; or it is an encoder's.
    """
    _reject_adapter(Path(path), key)
    _reject_without_config(Path(path), key)
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not isinstance(config.get_text_config(), PreTrainedConfig):
            raise ValueError("text_config is no object")
    except Exception as error:  # of the hub's client, of transformers and of its validation, which have no common base
        there = (Path(path) / CONFIG_NAME).is_file() or not isinstance(error, OSError)
        what = f"its {CONFIG_NAME} can't be used" if there else "no model is there"
        raise UserError(f"{key} {path}: {what}: {_size_in(Path(path)) or all_lines(error)}") from error
    _reject_other_kinds(path, config, key)
    return config


def is_quantised(config: PreTrainedConfig) -> bool:
    """Whether the configuration says that its weights are."""
    return any(getattr(config, name, None) is not None for name in QUANTISED_WEIGHTS)


def reject_quantised(path: str, config: PreTrainedConfig, *, from_scratch: bool = False) -> None:
    """
    Args:
        from_scratch: weights are drawn and none is loaded.

    Raises:
        UserError: the weights are quantised, so that there is nothing to train.
    """
    settings = next((found for name in QUANTISED_WEIGHTS if (found := getattr(config, name, None)) is not None), None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    kind = f" ({getattr(method, 'value', method)})" if method else ""
    if from_scratch:
        raise UserError(
            f"model.path {path}: config.json is a quantised checkpoint's{kind}, and what is exported would say so too: "
            f"leave {' and '.join(n for n in QUANTISED_WEIGHTS if hasattr(config, n))} out of a copy of it"
        )
    raise UserError(
        f"model.path {path}: a quantised checkpoint{kind}, which can't be trained: start from the model that it was "
        "made of, or from a copy with weights in bfloat16 or float32 and without quantization_config"
    )


def named_otherwise(config: PreTrainedConfig, loaded: str) -> tuple[str, bool] | None:
    """The class that ``architectures`` of a configuration names, where the one that its ``model_type`` leads to is not
    among them; and whether transformers has it. Engines go by the former, transformers by the latter.

    Args:
        loaded: name of the class that transformers makes.
    """
    listed = config.architectures if isinstance(config.architectures, list) else []
    if not listed or loaded in listed:
        return None
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_names(names)}
    return str(listed[0]), listed[0] in known


def _as_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _size_in(folder: Path) -> str | None:
    """The size in ``config.json`` that is 0 or below, by which transformers divides before it looks."""
    try:
        values: Any = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return wrong_size(values.get) if isinstance(values, dict) else None


def _reject_without_config(place: Path, key: str) -> None:
    """transformers would say that the configuration lacks a ``model_type``."""
    if place.is_file():
        raise UserError(f"{key} {place}: a file; the folder of a model is expected, which has a {CONFIG_NAME}")
    if place.is_dir() and not (place / CONFIG_NAME).is_file():
        gguf = "; it has GGUF files, which are quantised: start from" if any(place.glob("*.gguf")) else ":"
        raise UserError(f"{key} {place}: no {CONFIG_NAME} is in it{gguf} a folder as transformers saves it is expected")


def _reject_other_kinds(path: str, config: PreTrainedConfig, key: str) -> None:
    """transformers makes a causal language model of an encoder too, whose tokens see those that follow them."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{key} {path}: {kind} is an encoder with a decoder; a causal language model is expected")
    encoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if encoder and not getattr(config, "is_decoder", False):
        raise UserError(
            f"{key} {path}: {kind} is an encoder, whose tokens see those that follow them; a causal language model is "
            "expected (config.json has is_decoder true for one that was trained so)"
        )


def _reject_adapter(folder: Path, key: str) -> None:
    """transformers would load an adapter's base and put the adapter's layers into it, under names that no engine
    knows."""
    path = folder / ADAPTER_CONFIG_NAME
    if not path.is_file():
        return
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    kind = f"a LoRA adapter of {base}" if base else "an adapter (peft)"
    merged_beside = (folder.parent / CONFIG_NAME).is_file()
    remedy = (
        f"{folder.parent} has the model that it is merged into"
        if merged_beside
        else f"merge it first: peft.PeftModel.from_pretrained(model of {base or 'its base'}, {str(folder)!r})"
        ".merge_and_unload().save_pretrained(NEW), with the tokenizer beside it"
    )
    raise UserError(f"{key} {folder}: {kind}, no whole model; {remedy}")
