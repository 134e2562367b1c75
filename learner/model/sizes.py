"""Sizes in a configuration with which no model can be computed; transformers builds an empty shell of many of them."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig

from contracts.errors import UserError

POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""Fields that are 1 at least, under the names that transformers gives them in all families."""
TOKENS = ("bos_token_id", "eos_token_id")
"""Fields with a token id, or a list of them. transformers itself looks at ``pad_token_id``, which may be -1."""


def validate_sizes(path: str, config: PreTrainedConfig) -> None:
    """Raises:
    UserError: a size is 0 or below, sizes don't go together, or a constant of the normalisation is below 0.
    """
    text = config.get_text_config()
    if wrong := wrong_size(lambda name: getattr(text, name, None)):
        raise UserError(f"model.path {path}: config.json: {wrong}")
    heads, shared = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise UserError(
            f"model.path {path}: config.json: num_key_value_heads {shared}: num_attention_heads {heads} must be a "
            "multiple of it"
        )
    for name, value in vars(text).items():
        if name.endswith(("_eps", "epsilon")) and isinstance(value, (int, float)) and value < 0:
            raise UserError(f"model.path {path}: config.json: {name} {value:g}: must be 0 at least")
    rope = getattr(text, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    if isinstance(theta, (int, float)) and theta <= 0:
        raise UserError(f"model.path {path}: config.json: rope_theta {theta:g}: must be above 0")


def wrong_size(value_of: Callable[[str], object]) -> str | None:
    """What is wrong with the first size that is 0 or below; None where none is."""
    found = ((name, value_of(name)) for name in POSITIVE)
    return next((f"{name} {v}: must be 1 at least" for name, v in found if isinstance(v, int) and v < 1), None)


def tokens_outside(config: PreTrainedConfig) -> list[str]:
    """``field id`` of every token of the configuration that its vocabulary does not have."""
    text = config.get_text_config()
    found = []
    for name in TOKENS:
        value = getattr(text, name, None)
        ids = value if isinstance(value, list) else [value]
        found += [f"{name} {i}" for i in ids if isinstance(i, int) and not 0 <= i < text.vocab_size]
    return found
