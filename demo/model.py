"""The demo's model: a tokenizer with one token a word, and the configuration of a small Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from demo.task import LARGEST_SUM

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
WORDS = ["write", "numbers", "with", "sum", "ascending", "in", "any", "order"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s> <user> {{ m['content'] }} {% else %}"
    "<assistant> {{ m['content'] }} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def write_model(folder: Path, hidden: int = 96, layers: int = 3) -> None:
    """Save tokenizer and config.json; ``model.from_scratch`` draws the weights (0.4 M parameters by default).

    The files are written as transformers would write them; importing it takes longer than making the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = SPECIAL + WORDS + [str(number) for number in range(LARGEST_SUM + 1)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    )


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2))
