"""Checks the model on the driver before anything starts: on its configuration, its tokenizer and its empty shell.

Everything here takes a second or two, loads no weight, and would otherwise end a run after minutes, or after days at
its first checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from cluster.config.run_config import RunConfig
from cluster.data.ends import configured_ends
from cluster.data.locations import reject_absent
from cluster.data.tokenizer import known_special, load_tokenizer, vocabulary_size
from cluster.run.generation_settings import on_generation
from cluster.run.inputs import Inputs
from contracts.errors import UserError, all_lines
from learner.config import ModelConfig
from learner.model.checkpoint_config import named_otherwise, read_config, reject_quantised
from learner.model.dropout import dropout_of
from learner.model.forward import causal_model, choose_forward
from learner.model.loading import validate_length
from learner.model.quiet import quiet
from learner.model.shell import Shell, open_shell
from learner.model.sizes import tokens_outside, validate_sizes
from learner.zero.export import save_configuration
from learner.zero.weights import validate_publishable


def check_config(model: ModelConfig) -> PreTrainedConfig:
    """What the model's configurations alone show; before its tokenizer and the data are read.

    Raises:
        UserError: it is an adapter, quantised, an encoder, or one of its configurations can't be used.
    """
    reject_absent(model.path, "model.path")
    config = read_config(model.path, trust_remote_code=model.trust_remote_code)
    reject_quantised(model.path, config, from_scratch=model.from_scratch)
    validate_sizes(model.path, config)
    configured_ends(model.path)
    return config


def check_shell(config: RunConfig, architecture: PreTrainedConfig) -> tuple[Shell, list[str]]:
    """What the model's empty shell shows, and lines for the log: what is left out or changed. Before the data are read,
    which may take longer.

    Args:
        architecture: the model's configuration.

    Raises:
        UserError: weights are missing or have no place, the model is not as long as rows may be, or it can't be
            computed or published as the run is to.
    """
    model = config.model
    added = (
        vocabulary_size(load_tokenizer(model, config.data.chat_template, config.data.bos)) if model.add_tokens else 0
    )
    shell = open_shell(model, architecture, added)
    causal = causal_model(shell.module)
    validate_length(model.path, causal.config, config.data.max_length)
    choose_forward(causal.config, config.learner.forward)
    validate_publishable(shell.module)
    notes = (
        _on_added(model)
        + _on_names(config, shell, architecture)
        + _on_weights(config, shell)
        + _on_dropout(model, architecture)
    )
    settings = getattr(causal, "generation_config", None)
    if settings is not None and not model.from_scratch:
        notes += on_generation(settings, shell.vocabulary)
    return shell, notes


def check_inputs(config: RunConfig, shell: Shell, inputs: Inputs) -> list[str]:
    """What tokenizer and data show beside the model; returns lines for the log.

    Raises:
        UserError: tokens have no embedding, or policy and EMA could not be saved.
    """
    _validate_tokens(config.model.path, inputs, shell.vocabulary)
    try_export(shell, inputs.tokenizer, inputs.ends.ids)
    return _on_tokens(inputs.tokenizer, shell.vocabulary)


def try_export(shell: Shell, tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]) -> None:
    """Write everything that a checkpoint has beside its weights into a folder that is deleted again.

    Raises:
        UserError: a file of it can't be written; the run could not save what it trains.
    """
    with tempfile.TemporaryDirectory(prefix="sapo-export-") as name, quiet():
        folder = Path(name)
        _try(
            lambda: save_configuration(folder, causal_model(shell.module), ends),
            "config.json and generation_config.json",
        )
        _try(lambda: tokenizer.save_pretrained(folder), "tokenizer and chat template")
        if hasattr(shell.module, "peft_config"):
            adapted: Any = shell.module
            _try(
                lambda: adapted.save_pretrained(folder / "adapter", save_embedding_layers=False, state_dict={}),
                "model.lora's adapter",
            )


def _try(save: Any, what: str) -> None:
    try:
        save()
    except Exception as error:  # of transformers, tokenizers, peft, or of code that comes with the model
        raise UserError(
            f"model.path: what is trained could not be saved: its {what} can't be written: {all_lines(error)}"
        ) from error


def _validate_tokens(path: str, inputs: Inputs, vocabulary: int) -> None:
    table = inputs.table
    columns = [table.prompts.flat, table.responses.flat, *([table.rejected.flat] if table.rejected else [])]
    recorded = [a for batch in inputs.batches for pair in batch for a in (pair.prompt, pair.chosen, pair.replacement)]
    largest = max((int(np.max(ids)) for ids in (*columns, *recorded) if len(ids)), default=-1)
    where = "the data" if largest >= max(inputs.ends.ids) else "the tokens that end a response"
    largest = max(largest, *inputs.ends.ids)
    if largest >= vocabulary:
        named = inputs.tokenizer.convert_ids_to_tokens(largest)
        token = f"{largest} ({named})" if named else str(largest)
        raise UserError(
            f"model.path {path}: {where} have token {token}, and the model has {vocabulary} embeddings alone: use its "
            "own tokenizer, or add the token to the model by model.add_tokens in a `sapo sft` run"
        )


def _on_added(model: ModelConfig) -> list[str]:
    if not model.add_tokens:
        return []
    own = load_tokenizer(model.model_copy(update={"add_tokens": ()}))
    known = known_special(own, model.add_tokens)
    return [f"model.add_tokens: the tokenizer has {', '.join(known)} already"] if known else []


def _on_names(config: RunConfig, shell: Shell, architecture: PreTrainedConfig) -> list[str]:
    path, loaded = config.model.path, type(causal_model(shell.module)).__name__
    notes = [
        f"model.path {path}: config.json: {token} is outside its vocabulary; the run does not use it"
        for token in tokens_outside(architecture)
    ]
    if other := named_otherwise(architecture, loaded):
        named, known = other
        told = f"model.path {path}: config.json: architectures {named}, and model_type {architecture.model_type}"
        if known:
            raise UserError(f"{told}, which is {loaded}: engines go by the former, training by the latter; correct one")
        notes.append(f"{told}: it is loaded as {loaded}")
    return notes


def _on_weights(config: RunConfig, shell: Shell) -> list[str]:
    if not shell.unused:
        return []
    path, count = config.model.path, len(shell.unused)
    kind = type(causal_model(shell.module)).__name__
    told = (
        f"model.path {path}: {count} weights of the checkpoint have no place in {kind}, the first is {shell.unused[0]}"
    )
    if config.method == "sapo":  # engines load the folder on their own, and reject such a weight
        raise UserError(
            f"{told}: correct config.json if they belong to the model; `sapo sft` with learner.steps=0 writes a copy "
            "without them"
        )
    return [f"{told}; they are left out"]


def _on_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    beyond = vocabulary_size(tokenizer) - vocabulary
    if beyond <= 0:
        return []
    return [f"the tokenizer has {beyond} tokens from {vocabulary} on without an embedding; no row has any of them"]


def _on_dropout(model: ModelConfig, architecture: PreTrainedConfig) -> list[str]:
    found = ", ".join(f"{name} {value:g}" for name, value in dropout_of(architecture).items())
    if not found:
        return []
    if model.disable_dropout:
        return [f"dropout of the model is off while it is trained ({found}); model.disable_dropout=false keeps it"]
    return [f"the policy is trained with dropout ({found}), the reference has none: they differ at the first step"]
