"""The empty shell of the model that is trained: modules, names, shapes and dtypes on torch's meta device, no weights.

What would end a run after its model is loaded, or at its first checkpoint, shows on the shell in a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from contracts.errors import UserError, all_lines
from learner.config import ModelConfig
from learner.model.loading import DTYPES, add_adapters, enlarge_embeddings
from learner.model.quiet import quiet
from learner.model.stored_weights import first_rows, lfs_pointer, quantised_weight

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


def open_shell(model: ModelConfig, config: PreTrainedConfig, vocabulary: int = 0, *, key: str = "model.path") -> Shell:
    """The shell of what ``load_model`` loads.

    The weights of a local folder are compared by name and shape, as transformers would load them; nothing is asked of
    the hub.

    Args:
        config: of ``model.path``.
        vocabulary: rows that the embeddings must have; more are left as they are.
        key: the option that names the model, for messages.

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
            why = _why(error, config, folder)
            raise UserError(f"{key} {model.path}: not loadable as a causal language model: {why}") from error
        if report:
            _reject_incomplete(f"{key} {model.path}", config, report)
        enlarge_embeddings(causal, vocabulary)
        rows = causal.get_input_embeddings().num_embeddings
        module = add_adapters(causal, model) if model.lora else causal
    if report:
        _reject_untied(f"{key} {folder}", folder, config, getattr(causal, "_tied_weights_keys", None))
        _reject_quantised(f"{key} {folder}", folder, causal)
    return Shell(module, rows, tuple(sorted(report.get("unexpected_keys", ()))))


def _why(error: Exception, config: PreTrainedConfig, folder: Path) -> str:
    """What is wrong, in words of the file in which it is."""
    if pointer := lfs_pointer(folder):
        return f"{pointer.name} is a Git LFS pointer, not the weights; `git lfs pull` fetches them"
    if type(error).__name__ in ("UnpicklingError", "EOFError"):
        # torch's own words advise to run whatever code the file has in it.
        return "a .bin file of its weights is damaged, or holds more than tensors: bring them as safetensors"
    if isinstance(error, KeyError) and error.args:  # a name that is looked up in a table of transformers'
        fields = [name for name, value in _leaves(config.to_dict()) if value == error.args[0]]
        if fields:
            return f"config.json: {fields[0]} {error.args[0]!r} is unknown to transformers"
    return all_lines(error)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def _reject_quantised(named: str, folder: Path, model: PreTrainedModel) -> None:
    """transformers would read integers as if they were the weights' values."""
    floats = {name for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    if found := quantised_weight(folder, floats):
        name, dtype = found
        raise UserError(
            f"{named}: {name} is stored as {dtype}: a quantised checkpoint whose config.json does not say "
            "so; start from the model that it was made of"
        )


def _reject_incomplete(named: str, config: PreTrainedConfig, report: dict[str, Any]) -> None:
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise UserError(
            f"{named}: {len(mismatched)} weights have other shapes than config.json says, the first is "
            f"{name}: {list(found)} in the checkpoint, {list(wanted)} by config.json"
        )
    if missing := sorted(report["missing_keys"]):
        tied = config.get_text_config().tie_word_embeddings
        headless = len(missing) == 1 and missing[0].startswith("lm_head") and not tied
        remedy = "; if the head is the embedding, set tie_word_embeddings true in config.json" if headless else ""
        raise UserError(f"{named}: the checkpoint lacks {len(missing)} weights, the first is {missing[0]}{remedy}")


def _reject_untied(named: str, folder: Path, config: PreTrainedConfig, ties: dict[str, str] | list[str] | None) -> None:
    """transformers leaves a head untied that differs from its embedding; engines tie it, and compute another model.

    Args:
        ties: names of weights -> names of those that they are tied to.
    """
    if not config.get_text_config().tie_word_embeddings or not isinstance(ties, dict):
        return
    for head, embedding in ties.items():
        own, shared = (first_rows(folder, name, COMPARED_ROWS) for name in (head, embedding))
        if own is not None and shared is not None and not torch.equal(own, shared):
            raise UserError(
                f"{named}: config.json ties {head} to {embedding}, and the checkpoint has another {head}; "
                "set tie_word_embeddings false in config.json"
            )
