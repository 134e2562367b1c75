"""What kind of checkpoint a path holds, told from its configuration alone: no weight is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from contracts.errors import LONGEST_REASON, UserError

QUANTISED_WEIGHTS = ("gptq_config", "quantization_config", "compression_config")
"""Where configurations say that weights are quantised."""


def read_config(path: str, *, trust_remote_code: bool = False, key: str = "model.path") -> PreTrainedConfig:
    """The configuration of the model in a folder or on the hub.

    Args:
        key: the option that names it, for the message.

    Raises:
        UserError: the folder holds an adapter, or the configuration can't be used: unknown to transformers, not JSON,
            or with a value of the wrong type.
    """
    _reject_adapter(Path(path), key)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # of the hub's client, of transformers and of its validation, which have no common base
        there = (Path(path) / CONFIG_NAME).is_file() or not isinstance(error, OSError)
        what = f"its {CONFIG_NAME} can't be used" if there else "no model is there"
        raise UserError(f"{key} {path}: {what}: {reason(error)}") from error
    return config


def reject_quantised(path: str, config: PreTrainedConfig) -> None:
    """Raises:
    UserError: the weights are quantised, so that there is nothing to train.
    """
    settings = next((found for name in QUANTISED_WEIGHTS if (found := getattr(config, name, None)) is not None), None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    kind = f" ({getattr(method, 'value', method)})" if method else ""
    raise UserError(
        f"model.path {path}: a quantised checkpoint{kind}, which can't be trained: start from the model that it was "
        "made of, or from a copy with weights in bfloat16 or float32 and without quantization_config"
    )


def reason(error: BaseException) -> str:
    """An error's words in one line. Those of configurations name the field in one line, what is wrong in the next;
    a KeyError or AssertionError needs its name beside them."""
    words = " ".join(str(error).split())
    if not words or isinstance(error, (LookupError, AssertionError)):
        words = f"{type(error).__name__}: {words}"
    return words[:LONGEST_REASON]


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
