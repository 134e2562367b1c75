"""Loads the tokenizer of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.data.conversation import Unusable
from cluster.data.locations import reject_absent
from cluster.data.rendering import PROBE, ChatTemplate
from contracts.errors import UserError, all_lines, first_line
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS_TEMPLATE = "{{ bos_token }}"


def load_tokenizer(
    model: ModelConfig, chat_template: str | None = None, bos: Literal["tokenizer", "template"] = "tokenizer"
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with ``model.add_tokens`` and the template of the file ``chat_template`` if one is named.

    With ``bos`` "tokenizer", a template that does not write the beginning-of-sequence token which this tokenizer puts
    before text is made to: the model has seen it before every text. The template is saved with the model, so that
    whoever serves it opens conversations in the same way.

    Raises:
        UserError: no model or tokenizer is there, it knows no end-of-sequence token, or the template can't be read.
    """
    reject_absent(model.path, "model.path")
    key, path = ("model.tokenizer", model.tokenizer) if model.tokenizer else ("model.path", model.path)
    reject_absent(path, key)
    from transformers import AddedToken, AutoTokenizer

    from learner.model.quiet import quiet

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
        tokenizer("a")  # a setting of the wrong type shows only when it is used
    except Exception as error:  # OSError, ValueError, or a bare Exception from the Rust half: no tokenizer is there
        why = _broken_file(Path(path)) or all_lines(error)
        raise UserError(f"{key} {path}: no tokenizer could be loaded: {why}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key} {path}: the tokenizer has no end-of-sequence token")
    _reject_ordinary(tokenizer, model.add_tokens)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in model.add_tokens], special_tokens=True)
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template {chat_template}: can't be read: {first_line(error)}") from error
    if bos == "tokenizer" and _lacks_bos(tokenizer):
        tokenizer.chat_template = BOS_TEMPLATE + tokenizer.chat_template
    return tokenizer


def text_decoder(tokenizer: PreTrainedTokenizerBase, **options: Any) -> Callable[[Iterable[int]], str]:
    """From token ids to text. An embedding may have more rows than there are tokens: ids of such rows are left out, as
    fast tokenizers do; slow ones raise over them.

    Args:
        options: of the tokenizer's ``decode``.
    """
    size = vocabulary_size(tokenizer)
    return lambda ids: str(tokenizer.decode([int(i) for i in ids if i < size], **options))


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before text: the beginning-of-sequence token, or nothing."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    places = range(len(full) - len(bare) + 1)
    return full[: next((i for i in places if full[i : i + len(bare)] == bare), 0)]


def opening_note(tokenizer: PreTrainedTokenizerBase) -> str:
    """What sequences begin with, for people."""
    names = tokenizer.convert_ids_to_tokens(opening(tokenizer))
    if not names:
        return "the tokenizer opens text with no special token"
    template = tokenizer.chat_template
    made_to = isinstance(template, str) and template.startswith(BOS_TEMPLATE)
    return f"the tokenizer opens text with {' '.join(names)}" + (", and so does the chat template" if made_to else "")


def known_special(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> list[str]:
    """Those of ``tokens`` that the tokenizer has beside its vocabulary."""
    return [token for token in tokens if token in tokenizer.get_added_vocab()]


def _reject_ordinary(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of the tokens to add is an ordinary one of the vocabulary, which texts would lose.
    """
    known = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if ordinary := [token for token in tokens if token in known]:
        raise UserError(
            f"model.add_tokens {ordinary[0]!r}: an ordinary token of the tokenizer, which texts are made of; name a "
            f"mark that no text has, such as '<|{ordinary[0].strip()}|>'"
        )


def _broken_file(folder: Path) -> str | None:
    """What is wrong with the first of a tokenizer's files that holds no JSON object; None where none is broken."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        try:
            if not isinstance(json.loads((folder / name).read_text(encoding="utf-8")), dict):
                return f"{name} is no JSON object"
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return f"{name} is no JSON: {first_line(error)}"
    return None


def _lacks_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text gets a beginning-of-sequence token and a conversation none."""
    if not isinstance(tokenizer.chat_template, str) or tokenizer.bos_token_id not in opening(tokenizer):
        return False
    try:
        text = ChatTemplate.of(tokenizer).render(PROBE, add_generation_prompt=False)
    except Unusable:  # it wants a system turn, or tools: left as it is
        return False
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[:1] != [tokenizer.bos_token_id]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding of all its tokens has: ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1
