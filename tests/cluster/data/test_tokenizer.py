"""A tokenizer is loaded with the template that the configuration names, or rejected in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from cluster.config.sections import DataConfig
from cluster.data.ends import end_tokens
from cluster.data.loading import load_tables
from cluster.data.tokenizer import known_special, load_tokenizer, text_decoder, vocabulary_size
from contracts.errors import UserError
from learner.config import ModelConfig
from support.dataset_rows import EOS, TEMPLATE, conversation, jsonl, rejection, texts


def test_a_chat_template_from_a_file_serves_a_tokenizer_without_one(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}])
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    config = DataConfig(path=str(path), chat_template=str(tmp_path / "t.jinja"))
    tokenizer = load_tokenizer(ModelConfig(path=plain), config.chat_template)
    table = load_tables(config, "sapo", tokenizer, end_tokens(tokenizer)).train
    assert texts(table, plain) == [("<s><|user|>q</s><|assistant|>", "a</s>")]
    assert tokenizer.chat_template == "{{ bos_token }}" + TEMPLATE, "this tokenizer opens text with one"
    assert load_tokenizer(ModelConfig(path=plain), config.chat_template, bos="template").chat_template == TEMPLATE
    assert "has no chat template: name one in data.chat_template" in rejection(path, plain)
    assert rejection(path, plain, chat_template="none.jinja").startswith("data.chat_template none.jinja: can't be read")


def test_ids_of_rows_of_an_embedding_that_no_token_has_are_left_out_of_a_text(plain: str) -> None:
    fast, slow = load_tokenizer(ModelConfig(path=plain)), ByT5Tokenizer()
    for tokenizer in (fast, slow):
        ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
        padded = np.array([ids[0], vocabulary_size(tokenizer), *ids[1:], 100_000], np.int32)
        assert text_decoder(tokenizer)(padded) == "ab"
    assert text_decoder(fast, skip_special_tokens=True)([EOS]) == ""


def test_a_model_without_a_tokenizer_is_rejected(plain: str, tmp_path: Path) -> None:
    def said(path: str, **more: str) -> str:
        with pytest.raises(UserError) as caught:
            load_tokenizer(ModelConfig.model_validate({"path": path} | more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "tokenizer.json").write_text("{")
    (tmp_path / "garbage" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert said(str(tmp_path / "none")) == f"model.path {tmp_path / 'none'}: no such folder"
    assert said("runs/start/checkpoints/none") == "model.path runs/start/checkpoints/none: no such folder"
    assert said("/none/such", tokenizer=plain) == "model.path /none/such: no such folder"
    assert said(plain, tokenizer="./none") == "model.tokenizer ./none: no such folder"
    for path in (str(tmp_path / "empty"), str(tmp_path / "garbage"), "some-owner/no-such-model"):
        assert said(path).startswith(f"model.path {path}: no tokenizer could be loaded: ")


def test_an_ordinary_token_can_not_be_made_special(plain: str) -> None:
    with pytest.raises(UserError, match=r"^model.add_tokens '!': an ordinary token of the tokenizer, which texts"):
        load_tokenizer(ModelConfig(path=plain, add_tokens=("<new>", "!")))
    tokenizer = load_tokenizer(ModelConfig(path=plain, add_tokens=("<new>", "<|user|>")))
    assert known_special(load_tokenizer(ModelConfig(path=plain)), ("<new>", "<|user|>")) == ["<|user|>"]
    assert tokenizer.encode("<new>", add_special_tokens=False) == [len(tokenizer) - 1]
