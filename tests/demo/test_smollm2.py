"""The model from the package is a whole Hugging Face folder, or one line says what to install."""

from __future__ import annotations

import pytest

from contracts.errors import UserError
from demo import smollm2 as demo_model


def test_without_the_package_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_model, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match=r"^model: Python package no_such_package is not installed: make real-model$"):
        demo_model.write_model(tmp_path / "model")


def test_a_folder_that_is_there_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_model, "PACKAGES", ("no_such_package",))
    demo_model.write_model(tmp_path)


@pytest.mark.slow
def test_the_model_says_what_a_language_model_says(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        likeliest = int(model(ids).logits[0, -1].argmax())
    assert str(tokenizer.decode([likeliest])).strip() == "Paris"
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert str(tokenizer.apply_chat_template(turns, tokenize=False)).endswith(f"Hi{tokenizer.eos_token}\n")
