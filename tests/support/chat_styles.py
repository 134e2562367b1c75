"""Small tokenizers in the manner of well-known models: their special tokens, chat template and generation_config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') "
    "+ '\n' + (m['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OPEN = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n###\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatStyle:
    """How a family of models writes a conversation."""

    special: tuple[str, ...]
    eos: str
    template: str
    configured: tuple[str, ...]
    """``eos_token_id`` of generation_config.json, by name; () for a model without that file."""
    ends: tuple[str, ...]
    """The end tokens that are right."""
    closing: str
    """The one that a response ends with."""
    written: str
    """The response of which the content is "the answer", as it must be trained."""


STYLES = {
    "llama-2": ChatStyle(("<s>", "</s>"), "</s>", LLAMA_2, ("</s>",), ("</s>",), "</s>", " the answer </s>"),
    "qwen": ChatStyle(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        CHATML,
        ("<|im_end|>", "<|endoftext|>"),
        ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        "the answer<|im_end|>",
    ),
    "qwen-base": ChatStyle(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|endoftext|>",
        CHATML,
        ("<|endoftext|>",),
        ("<|endoftext|>", "<|im_end|>"),
        "<|im_end|>",
        "the answer<|im_end|>",
    ),
    "gemma": ChatStyle(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        GEMMA,
        ("<eos>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        "<end_of_turn>",
        "the answer<end_of_turn>",
    ),
    "phi-3": ChatStyle(
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        PHI_3,
        ("<|end|>", "<|assistant|>", "<|endoftext|>"),
        ("<|endoftext|>", "<|end|>", "<|assistant|>"),
        "<|end|>",
        "the answer<|end|>",
    ),
    "llama-3": ChatStyle(
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
        ),
        "<|end_of_text|>",
        LLAMA_3,
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "the answer<|eot_id|>",
    ),
    "closes with nothing": ChatStyle(
        ("</s>", "<|user|>", "<|assistant|>"), "</s>", OPEN, (), ("</s>",), "</s>", "the answer</s>"
    ),
    "closes with plain text": ChatStyle(("</s>",), "</s>", PLAIN, (), ("</s>",), "</s>", " the answer\n###\n</s>"),
    "chatml as plain text": ChatStyle(("</s>",), "</s>", CHATML, (), ("</s>",), "</s>", "the answer<|im_end|>\n</s>"),
}


def write_tokenizer(folder: Path, style: ChatStyle) -> str:
    """A byte-level BPE tokenizer with the style's special tokens and template, and its generation_config."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=list(style.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the answer to the question is the number"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=style.special[0], eos_token=style.eos)
    tokenizer.chat_template = style.template
    tokenizer.save_pretrained(folder)
    if style.configured:
        ids = [tokenizer.convert_tokens_to_ids(name) for name in style.configured]
        ends = ids if len(ids) > 1 else ids[0]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return str(folder)
