"""Chat templates as well-known models ship them, each on a small tokenizer of its model's kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from support.paths import REPOSITORY

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    + ALTERNATE
    + "{% if loop.index0 == "
    "0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
PROSE = "The answer to the question is the number of days. He said hello, and the other said: it has seven days!\n\n"

Kind = Literal["bytes", "pieces", "pieces, always a space"]
"""Byte-level BPE as GPT-2's, or SentencePiece's pieces, which write a space before the first word or before any."""


@dataclass(frozen=True)
class PublicTemplate:
    """A model's template and what its tokenizer knows."""

    template: str
    special: tuple[str, ...]
    """The first is the beginning of a sequence, the second its end."""
    kind: Kind = "bytes"
    opens: bool = False
    """Whether the tokenizer puts the first token before text."""
    system: bool = True
    """Whether the template takes a system turn."""
    rstrip: tuple[str, ...] = ()
    """Special tokens that take the white space after them."""


def _trl(name: str) -> str:
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def _recipe(name: str) -> str:
    return (REPOSITORY / "configs" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


CHATML = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
LLAMA_3 = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")
PHI = ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
PUBLIC = {
    "ChatML": PublicTemplate(_recipe("chatml"), CHATML),
    "Llama-2": PublicTemplate(LLAMA_2, ("<s>", "</s>"), "pieces", opens=True),
    "Llama-3": PublicTemplate(_trl("llama3"), LLAMA_3, opens=True),
    "Mistral": PublicTemplate(MISTRAL, ("<s>", "</s>"), "pieces, always a space", opens=True, system=False),
    "Gemma": PublicTemplate(
        _trl("gemma"), ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "pieces", opens=True, system=False
    ),
    "Phi-3": PublicTemplate(_trl("phi3"), PHI, "pieces", rstrip=PHI[2:]),
    "Qwen2.5": PublicTemplate(_trl("qwen2_5"), CHATML),
    "Qwen3": PublicTemplate(_trl("qwen3"), CHATML),
    "Zephyr": PublicTemplate(_recipe("zephyr"), ("<s>", "</s>"), "pieces, always a space", opens=True),
}


def public_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a few hundred tokens with the template's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    public = PUBLIC[name]
    bos, eos = public.special[:2]
    if public.kind == "bytes":
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        initial, alphabet = list(public.special), pre_tokenizers.ByteLevel.alphabet()
    else:
        scheme = "first" if public.kind == "pieces" else "always"
        bpe = Tokenizer(models.BPE(byte_fallback=True))
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        initial, alphabet = [*public.special, *(f"<0x{byte:02X}>" for byte in range(256))], []
    trainer = trainers.BpeTrainer(
        vocab_size=len(initial) + len(alphabet) + 120,
        special_tokens=initial,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator([PROSE * 3], trainer)
    if public.kind != "bytes":
        bpe = _without_added_bytes(bpe, public.special)
    bpe.add_special_tokens(
        [AddedToken(token, rstrip=token in public.rstrip, normalized=False) for token in public.special]
    )
    if public.opens:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = public.template
    return tokenizer


def _without_added_bytes(bpe: Tokenizer, special: tuple[str, ...]) -> Tokenizer:
    """The bytes as ordinary tokens of the vocabulary."""
    from tokenizers import Tokenizer

    written = json.loads(bpe.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(written))


def save_public(name: str, folder: Path) -> str:
    public_tokenizer(name).save_pretrained(folder)
    return str(folder)
