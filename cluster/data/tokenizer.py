"""Loads the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.locations import reject_absent
from contracts.errors import UserError, first_line
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with ``model.add_tokens`` and the template of the file ``chat_template`` if one is named.

    Raises:
        UserError: no model or tokenizer is there, it knows no end-of-sequence token, or the template can't be read.
    """
    reject_absent(model.path, "model.path")
    key, path = ("model.tokenizer", model.tokenizer) if model.tokenizer else ("model.path", model.path)
    reject_absent(path, key)
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # OSError, ValueError, or a bare Exception from the Rust half: no tokenizer is there
        raise UserError(f"{key} {path}: no tokenizer could be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key} {path}: the tokenizer has no end-of-sequence token")
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in model.add_tokens], special_tokens=True)
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template {chat_template}: can't be read: {first_line(error)}") from error
    return tokenizer


def text_decoder(tokenizer: PreTrainedTokenizerBase, **options: Any) -> Callable[[Iterable[int]], str]:
    """From token ids to text. An embedding may have more rows than there are tokens: ids of such rows are left out, as
    fast tokenizers do; slow ones raise over them.

    Args:
        options: of the tokenizer's ``decode``.
    """
    size = vocabulary_size(tokenizer)
    return lambda ids: str(tokenizer.decode([int(i) for i in ids if i < size], **options))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding of all its tokens has: ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1
