"""Dropout of the starting model: switched off for training, kept in what is exported.

With it the policy would differ from the reference before the first step, by noise alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

NOISE = ("dropout", "pdrop", "layerdrop", "jitter_noise")
"""Parts of the names of configuration fields that make a forward of training random."""

_NOTE = "_dropout_of_the_start"
"""Attribute of a model that keeps what its configuration had."""


def dropout_of(config: PreTrainedConfig) -> dict[str, float]:
    """Fields of a configuration that make training's forward random, with their values; those of 0 are left out.

    Heads for other tasks (``classifier_dropout``) are no part of a causal language model.
    """
    return {
        name: float(value)
        for name, value in sorted(vars(config.get_text_config()).items())
        if any(part in name for part in NOISE)
        and not name.startswith(("classifier", "summary"))
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value
    }


def disable_dropout(model: PreTrainedModel) -> None:
    """Switch off every source of noise in ``model``, before it gets adapters, which have a dropout of their own."""
    config: Any = model.config.get_text_config()
    found = dropout_of(config)
    for name in found:
        setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            module.p = 0.0
            continue
        # Attention and others apply it by a function, at a rate that they took from the configuration.
        for name, value in vars(module).items():
            if isinstance(value, float) and value and any(part in name for part in NOISE):
                setattr(module, name, 0.0)
    setattr(model, _NOTE, found)


@contextmanager
def dropout_as_at_the_start(model: PreTrainedModel) -> Iterator[None]:
    """For the time of the context the configuration of ``model`` says what the start's said."""
    config: Any = model.config.get_text_config()
    found: dict[str, float] = getattr(model, _NOTE, {})
    for name, value in found.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name in found:
            setattr(config, name, 0.0)
