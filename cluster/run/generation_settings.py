"""What is odd in a model's ``generation_config.json``: training has no use for it, and exports hand it on."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

from transformers import GenerationConfig

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("temperature", "typical_p", "min_p"), (lambda value: value >= 0, "a number, 0 at least")),
    "repetition_penalty": (lambda value: value > 0, "a number above 0"),
    "top_p": (lambda value: 0 < value <= 1, "a number above 0, 1 at most"),
    "top_k": (lambda value: value >= 0 and value == int(value), "a whole number, 0 at least"),
    **dict.fromkeys(
        ("max_length", "max_new_tokens", "num_beams"),
        (lambda value: value >= 1 and value == int(value), "a whole number, 1 at least"),
    ),
}
"""Fields with numbers, which transformers does not check."""
STEERING = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "guidance_scale",
    "sequence_bias",
)
"""Fields that change which tokens are generated, beside temperature and its like, which section ``generation`` has."""
TOKENS = ("bos_token_id", "pad_token_id", "decoder_start_token_id")


def on_generation(settings: GenerationConfig, vocabulary: int) -> list[str]:
    """Lines for the log: values that make no sense, and settings that the run does not apply.

    Args:
        vocabulary: rows of the model's embedding.
    """
    given = settings.to_diff_dict()
    odd = [
        f"{name} {given[name]!r} ({wanted} is expected)"
        for name, (right, wanted) in RULES.items()
        if given.get(name) is not None and not (_is_number(given[name]) and right(given[name]))
    ]
    odd += [
        f"{name} {given[name]!r} (a token id below {vocabulary} is expected)"
        for name in TOKENS
        if given.get(name) is not None and not (type(given[name]) is int and 0 <= given[name] < vocabulary)
    ]
    steering = [f"{name} {given[name]!r}" for name in STEERING if given.get(name)]
    notes = [f"generation_config.json: {', '.join(odd)}; it is exported as it is"] if odd else []
    if steering:
        notes.append(
            f"generation_config.json: {', '.join(steering)}: not applied by the run; it is exported, and whoever "
            "serves the model applies it"
        )
    return notes


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
