"""What the tests of datasets share: rows in a file, the table that is made of them, and its text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from actors.token_table import TokenTable
from cluster.config.sections import DataConfig
from cluster.data.ends import read_ends
from cluster.data.loading import load_tables
from cluster.data.report import DataReport
from cluster.data.tokenizer import load_tokenizer
from contracts.errors import UserError
from learner.config import ModelConfig

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BOS, EOS = 0, 1


def with_template(plain: str, template: str, folder: Path) -> str:
    tokenizer = load_tokenizer(ModelConfig(path=plain))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def conversation(*turns: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]


def jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table_of(path: Path | str, model: str, method: str = "sapo", **data: object) -> tuple[TokenTable, DataReport]:
    config = DataConfig.model_validate({"path": str(path)} | data)
    tokenizer = load_tokenizer(ModelConfig(path=model), config.chat_template, config.bos)
    tables = load_tables(config, method, tokenizer, read_ends(ModelConfig(path=model), tokenizer))
    return tables.train, tables.reports[0]


def texts(table: TokenTable, model: str) -> list[tuple[str, ...]]:
    tokenizer = load_tokenizer(ModelConfig(path=model))
    return [
        tuple(str(tokenizer.decode(ids.tolist())) for ids in table[i] if ids is not None) for i in range(len(table))
    ]


def rejection(path: Path | str, model: str, method: str = "sapo", **data: object) -> str:
    with pytest.raises(UserError) as caught:
        table_of(path, model, method, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)
