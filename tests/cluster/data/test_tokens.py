"""Prompt and response are cut out of the tokens of the whole; special tokens in content are text; one beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.data.tokenizer import load_tokenizer, opening
from cluster.data.tokens import MERGED
from demo.model import write_model
from learner.config import ModelConfig
from support.chat_styles import STYLES, write_tokenizer
from support.dataset_rows import conversation, jsonl, rejection, table_of, texts, with_template
from support.public_templates import PUBLIC, public_tokenizer, save_public

PIECES = ("Llama-2", "Mistral")
"""Tokenizers in the manner of SentencePiece: the space belongs to the word that follows."""


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Say: ", "He said"),
        ("Say:", " He said"),
        ("the num", "ber"),
        ("it has ", " seven days"),
        ("He", "He"),
        ("a\n", "\nb"),
    ],
)
def test_the_ids_are_those_of_the_whole_text(tmp_path: Path, name: str, prompt: str, completion: str) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": prompt, "completion": completion}])
    table, report = table_of(path, save_public(name, tmp_path / "model"))
    tokenizer = public_tokenizer(name)
    whole = tokenizer(prompt + completion)["input_ids"]
    asked = tokenizer(prompt)["input_ids"]
    row = table[0]
    assert [*row.prompt.tolist(), *row.response.tolist()] == [*whole, tokenizer.eos_token_id]
    assert row.prompt.tolist() == asked[: len(row.prompt)], "a model that is asked reads these tokens"
    assert (len(row.prompt) < len(asked)) == (MERGED in report.noted)


def test_a_token_over_the_seam_belongs_to_the_response(tmp_path: Path) -> None:
    """``▁He`` is one token: the space that ends the prompt is in it."""
    model = save_public("Llama-2", tmp_path / "model")
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [{"prompt": "Say: ", "completion": "He said"}]), model)
    tokenizer = load_tokenizer(ModelConfig(path=model))
    assert tokenizer.decode(table[0].prompt.tolist()) == "<s> Say:"
    assert report.noted == {MERGED: 1}
    assert report.first[MERGED] == "d.jsonl:1"


def test_a_prompt_without_a_token_of_its_own_is_counted(tmp_path: Path) -> None:
    """With one token a word and no token that opens a sequence."""
    write_model(tmp_path / "model")
    rows = [{"prompt": "wri", "completion": "te"}, {"prompt": "write", "completion": " 3"}]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", rows), str(tmp_path / "model"))
    assert (report.used, report.dropped) == (1, {"whose prompt has no token of its own": 1})


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (n, w)
        for n, public in PUBLIC.items()
        for w in ("prompt", "response", "system")
        if w != "system" or public.system
    ],
)
def test_special_tokens_in_content_are_text(tmp_path: Path, name: str, where: str) -> None:
    public = PUBLIC[name]
    forged = f"x {public.special[1]}\n{public.special[-1]}y {public.special[0]}z"
    said = {"system": "s", "prompt": "q", "response": "a"} | {where: forged}
    system = [{"role": "system", "content": said["system"]}] if public.system else []
    model = save_public(name, tmp_path / "model")
    talks = [[*system, *conversation(said["prompt"], said["response"])], [*system, *conversation("q", "a")]]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": talk} for talk in talks]), model)
    assert (report.used, report.noted.keys() - {MERGED}) == (2, set())
    special = set(public_tokenizer(name).added_tokens_decoder)
    forged_row, plain_row = ([*table[i].prompt.tolist(), *table[i].response.tolist()] for i in (0, 1))
    assert [i for i in forged_row if i in special] == [i for i in plain_row if i in special]
    shown = "".join(texts(table, model)[0])
    assert all(token in shown for token in (public.special[0], public.special[1], public.special[-1]))


def test_tokens_that_texts_hold_on_purpose_are_tokens(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a <|system|> b </s> c")}])
    system = load_tokenizer(ModelConfig(path=chat)).convert_tokens_to_ids("<|system|>")
    for allowed, found in (((), False), (("<|system|>",), True)):
        table, _ = table_of(path, chat, content_tokens=allowed)
        assert (system in table[0].response) is found
        assert texts(table, chat)[0][1] == "a <|system|> b </s> c</s>"


def test_a_name_that_is_no_special_token_is_rejected(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}])
    said = rejection(path, chat, content_tokens=("<|system|>", "<think>"))
    assert said == "data.content_tokens <think>: no special token of this tokenizer"


def test_an_end_that_is_an_ordinary_token_counts_the_row(chat: str, tmp_path: Path) -> None:
    """A generation_config may name any token; one that content holds would end the response there."""
    import shutil

    shutil.copytree(chat, tmp_path / "model")
    x = load_tokenizer(ModelConfig(path=chat)).convert_tokens_to_ids("x")
    (tmp_path / "model" / "generation_config.json").write_text(f'{{"eos_token_id": [1, {x}]}}')
    rows = [{"messages": conversation("q", text)} for text in ("a", "b x c", "b <|user|> x")]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", rows), str(tmp_path / "model"))
    assert report.used == 1
    assert report.dropped == {"whose text speaks of x, which this tokenizer can't write as text": 2}


def one_row(model: str, tmp_path: Path, row: dict[str, Any], **data: object) -> list[int]:
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), model, **data)
    return [*table[0].prompt.tolist(), *table[0].response.tolist()]


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_one_beginning_where_the_tokenizer_puts_one_before_text(tmp_path: Path, name: str) -> None:
    public = PUBLIC[name]
    model = save_public(name, tmp_path / "model")
    bos = public_tokenizer(name).bos_token_id
    text = {"prompt": "hello", "completion": " it"}
    brought = {"prompt": f"{public.special[0]}hello", "completion": " it"}
    expected = int(public.opens)
    assert one_row(model, tmp_path, text).count(bos) == expected
    assert one_row(model, tmp_path, brought).count(bos) == 1
    talk = one_row(model, tmp_path, {"messages": conversation("q", "a")})
    assert talk.count(bos) == (1 if public.opens or "bos_token" in public.template else 0)
    assert (talk[0] == bos) is bool(talk.count(bos))


@pytest.mark.parametrize("stem", ["chatml", "zephyr"])
def test_the_recipes_templates_open_conversations_as_the_base_models_open_text(tmp_path: Path, stem: str) -> None:
    """Llama-3's and Mistral's tokenizers put a token before text, and the recipes' templates write none."""
    base = {"chatml": "Llama-3", "zephyr": "Mistral"}[stem]
    model = save_public(base, tmp_path / "model")
    template = f"configs/templates/{stem}.jinja"
    row = {"messages": conversation("q", "a")}
    bos = public_tokenizer(base).bos_token_id
    assert one_row(model, tmp_path, row, chat_template=template)[:2].count(bos) == 1
    assert bos not in one_row(model, tmp_path, row, chat_template=template, bos="template")
    tokenizer = load_tokenizer(ModelConfig(path=model), template)
    tokenizer.save_pretrained(tmp_path / "trained")
    again = load_tokenizer(ModelConfig(path=str(tmp_path / "trained")))
    assert again.chat_template == tokenizer.chat_template, "what is saved writes it, and gets no second one"
    served_with: Any = again.apply_chat_template(row["messages"], tokenize=True)
    served = served_with["input_ids"]
    assert served[:2].count(bos) == 1


def test_what_opens_text_is_found(plain: str, tmp_path: Path) -> None:
    assert opening(load_tokenizer(ModelConfig(path=plain))) == [0]
    assert opening(load_tokenizer(ModelConfig(path=write_tokenizer(tmp_path, STYLES["qwen"])))) == []


def test_a_truncated_prompt_keeps_its_beginning(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "zyxwvu" * 9, "completion": "abc"}])
    table, _ = table_of(path, plain, max_length=20, max_prompt_length=8, long_prompts="truncate")
    assert texts(table, plain) == [("<s>" + ("zyxwvu" * 9)[-7:], "abc</s>")]


@pytest.mark.parametrize(("choice", "used"), [("truncate", 2), ("drop", 1)])
def test_long_responses_are_cut_or_dropped_and_counted(plain: str, tmp_path: Path, choice: str, used: int) -> None:
    rows = [{"prompt": "zyx", "completion": "abcdfg" * 9}, {"prompt": "zyx", "completion": "abc"}]
    _, report = table_of(
        jsonl(tmp_path / "d.jsonl", rows), plain, max_length=20, max_prompt_length=8, long_responses=choice
    )
    assert report.used == used
    if choice == "drop":
        assert report.dropped == {"over 20 tokens with a response over 16": 1}
    else:
        assert report.noted == {"over max_length, whose response lost its end and so has no end token": 1}


def test_conversations_without_a_template_are_rejected(plain: str, tmp_path: Path) -> None:
    said = rejection(jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}]), plain)
    assert "has no chat template: name one in data.chat_template" in said


def test_a_template_that_can_not_take_marks_is_no_silent_error(plain: str, tmp_path: Path) -> None:
    """One that writes content as JSON in ASCII loses the marks: the text would not be what the row says."""
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content | tojson(ensure_ascii=true)) + "
        "eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    model = with_template(plain, template, tmp_path / "model")
    rows = [{"messages": conversation("q", text)} for text in ("a", "a </s> b")]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", rows), model)
    assert report.used == 1
    assert report.dropped == {"whose text speaks of special tokens, which the chat template writes otherwise": 1}


def test_a_tokenizer_without_a_fast_half_serves(tmp_path: Path) -> None:
    """It can't write a special token as text: such rows are counted."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    talks = [conversation("q", "a é"), conversation("q </s>", "a"), conversation("q", "b")]
    rows = [*({"messages": talk} for talk in talks), {"prompt": "q", "completion": " a"}]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), str(tmp_path / "model"))
    assert texts(table, str(tmp_path / "model")) == [
        ("user:q</s>assistant:", "a é</s>"),
        ("user:q</s>assistant:", "b</s>"),
        ("q", " a</s>"),
    ]
    assert report.dropped == {"whose text speaks of </s>, which this tokenizer can't write as text": 1}
