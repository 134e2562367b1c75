"""The empty shell of the model that is trained: modules, names, shapes and dtypes on torch's meta device, no weights.

What would end a run after its model is loaded, or at its first checkpoint, shows on the shell in a second.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from contracts.errors import UserError
from learner.config import ModelConfig
from learner.model.checkpoint_config import reason
from learner.model.loading import DTYPES, add_adapters, enlarge_embeddings

COMPARED_ROWS = 64
"""Of a head and an embedding that should be tied."""


@dataclass(frozen=True)
class Shell:
    """A model without weights."""

    module: nn.Module
    """With adapters, where the run trains some."""
    vocabulary: int
    """Rows of its embedding."""
    unused: tuple[str, ...]
    """Weights of the checkpoint that the model has no place for, by name."""


def open_shell(model: ModelConfig, config: PreTrainedConfig, vocabulary: int = 0) -> Shell:
    """The shell of what ``load_model`` loads.

    The weights of a local folder are compared by name and shape, as transformers would load them; nothing is asked of
    the hub.

    Args:
        config: of ``model.path``.
        vocabulary: rows that the embeddings must have; more are left as they are.

    Raises:
        UserError: it is no causal language model that transformers knows; weights are missing or of another shape; an
            embedding and a head that should be tied differ; or adapters don't fit it.
    """
    folder = Path(model.path)
    report: dict[str, Any] = {}
    with quiet(), torch.device("meta"):
        try:
            if folder.is_dir() and not model.from_scratch:
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    model.path,
                    dtype=DTYPES[model.dtype],
                    trust_remote_code=model.trust_remote_code,
                    device_map="meta",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
                causal, report = loaded
            else:
                causal = AutoModelForCausalLM.from_config(
                    config, dtype=DTYPES[model.dtype], trust_remote_code=model.trust_remote_code
                )
        except Exception as error:  # a config may break the code of a model anywhere
            raise UserError(
                f"model.path {model.path}: not loadable as a causal language model: {reason(error)}"
            ) from error
        if report:
            _reject_incomplete(model.path, config, report)
        enlarge_embeddings(causal, vocabulary)
        rows = causal.get_input_embeddings().num_embeddings
        module = add_adapters(causal, model) if model.lora else causal
    if report:
        _reject_untied(folder, config, getattr(causal, "_tied_weights_keys", None))
    return Shell(module, rows, tuple(sorted(report.get("unexpected_keys", ()))))


def _reject_incomplete(path: str, config: PreTrainedConfig, report: dict[str, Any]) -> None:
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise UserError(
            f"model.path {path}: {len(mismatched)} weights have other shapes than config.json says, the first is "
            f"{name}: {list(found)} in the checkpoint, {list(wanted)} by config.json"
        )
    if missing := sorted(report["missing_keys"]):
        tied = config.get_text_config().tie_word_embeddings
        headless = len(missing) == 1 and missing[0].startswith("lm_head") and not tied
        remedy = "; if the head is the embedding, set tie_word_embeddings true in config.json" if headless else ""
        raise UserError(
            f"model.path {path}: the checkpoint lacks {len(missing)} weights, the first is {missing[0]}{remedy}"
        )


def _reject_untied(folder: Path, config: PreTrainedConfig, ties: dict[str, str] | list[str] | None) -> None:
    """transformers leaves a head untied that differs from its embedding; engines tie it, and compute another model.

    Args:
        ties: names of weights -> names of those that they are tied to.
    """
    if not config.get_text_config().tie_word_embeddings or not isinstance(ties, dict):
        return
    for head, embedding in ties.items():
        own, shared = _first_rows(folder, head), _first_rows(folder, embedding)
        if own is not None and shared is not None and not torch.equal(own, shared):
            raise UserError(
                f"model.path {folder}: config.json ties {head} to {embedding}, and the checkpoint has another {head}; "
                "set tie_word_embeddings false in config.json"
            )


def _first_rows(folder: Path, name: str) -> torch.Tensor | None:
    """The first rows of a weight in a folder of safetensors; None where it has none of this name."""
    index, file = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if index.is_file():
        shard = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(name)
        if shard is None:
            return None
        file = folder / shard
    if not file.is_file():
        return None
    with safe_open(file, framework="pt", device="cpu") as tensors:
        if name not in tensors.keys():  # noqa: SIM118  # no mapping
            return None
        rows: torch.Tensor = tensors.get_slice(name)[:COMPARED_ROWS]
        return rows


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers and peft print: tables of thirty lines of what is said here in one, progress bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
