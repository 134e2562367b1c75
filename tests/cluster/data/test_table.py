"""Rows of every supported shape become token ids; what can't be used is counted with its reason or refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import REPOSITORY

from actors.token_table import TokenTable
from contracts.errors import UserError
from cluster.config.run_config import DataConfig
from cluster.data.table import DataReport, load_table, load_tokenizer
from demo.model import write_model
from learner.config import ModelConfig

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
STRICT_TEMPLATE = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE
BOS, EOS = 0, 1


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE tokenizer that opens sequences with <s> and has no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the answer to the question is the number"] * 4, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    folder = tmp_path_factory.mktemp("plain")
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def chat(plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with a chat template."""
    return with_template(plain, TEMPLATE, tmp_path_factory.mktemp("chat"))


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
    table, _, report = load_table(config, ModelConfig(path=model), method)
    return table, report


def texts(table: TokenTable, model: str) -> list[tuple[str, ...]]:
    tokenizer = load_tokenizer(ModelConfig(path=model))
    return [tuple(tokenizer.decode(ids.tolist()) for ids in table[i] if ids is not None) for i in range(len(table))]


def refusal(path: Path | str, model: str, method: str = "sapo", **data: object) -> str:
    with pytest.raises(UserError) as refused:
        table_of(path, model, method, **data)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_last_assistant_turn_is_the_response_and_what_follows_it_is_dropped(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("a", "b", "c", "d", "e")}])
    table, _ = table_of(path, chat)
    assert texts(table, chat) == [("<|user|>a</s><|assistant|>b</s><|user|>c</s><|assistant|>", "d</s>")]


def test_the_same_rows_are_read_from_every_kind_of_file(chat: str, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"messages": conversation(f"question {i}", f"answer {i}")} for i in range(5)]
    jsonl(tmp_path / "d.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "a.jsonl", rows[:2])
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "folder" / "b.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "dict")
    expected = [(f"<|user|>question {i}</s><|assistant|>", f"answer {i}</s>") for i in range(5)]
    for name in ("d.jsonl", "d.parquet", "folder", "saved", "dict"):
        table, report = table_of(tmp_path / name, chat)
        assert texts(table, chat) == expected, name
        assert (report.read, report.used) == (5, 5)
    table, _ = table_of(tmp_path / "dict", chat, split="test")
    assert texts(table, chat) == expected[:1]
    assert refusal(tmp_path / "dict", chat, split="dev") == f"data.split dev: {tmp_path / 'dict'} has train, test"


def test_a_column_of_conversations_can_be_chosen(chat: str, tmp_path: Path) -> None:
    row = {"messages": conversation("x", "wrong"), "chosen": conversation("q", "right")}
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat, messages_column="chosen")
    assert texts(table, chat)[0][1] == "right</s>"


def test_prompt_and_completion_text_is_taken_as_it_is(plain: str, chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "2 + 2 =", "completion": " 4"}])
    for model in (plain, chat):
        table, _ = table_of(path, model)
        assert texts(table, model) == [("<s>2 + 2 =", " 4</s>")]
    renamed = jsonl(tmp_path / "r.jsonl", [{"q": "2 + 2 =", "a": " 4"}])
    assert texts(table_of(renamed, plain, prompt_column="q", completion_column="a")[0], plain)[0][1] == " 4</s>"


def test_prompt_and_completion_messages_are_rendered(chat: str, tmp_path: Path) -> None:
    turns = conversation("q", "a")
    rows = [{"prompt": turns[:1], "completion": turns[1:]}, {"prompt": turns[:1], "completion": "a"}]
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", rows), chat)
    assert texts(table, chat) == [("<|user|>q</s><|assistant|>", "a</s>")] * 2


def test_text_and_conversations_in_one_file_each_get_their_own_special_tokens(chat: str, tmp_path: Path) -> None:
    rows = [
        {"messages": conversation("q", "a")},
        {"prompt": "q", "completion": "a"},
        {"messages": conversation("r", "b")},
    ]
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", rows), chat)
    assert [prompt for prompt, _ in texts(table, chat)] == [
        "<|user|>q</s><|assistant|>", "<s>q", "<|user|>r</s><|assistant|>",
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": conversation("q", "good"), "rejected": conversation("q", "bad")},
        {"prompt": "q", "chosen": conversation("q", "good"), "rejected": conversation("q", "bad")},
        {"prompt": "q", "chosen": conversation("", "good")[1:], "rejected": conversation("", "bad")[1:]},
        {"prompt": conversation("q"), "chosen": "good", "rejected": "bad"},
    ],
)
def test_given_pairs_share_their_prompt(chat: str, tmp_path: Path, row: dict[str, object]) -> None:
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat, "offline")
    assert texts(table, chat) == [("<|user|>q</s><|assistant|>", "good</s>", "bad</s>")]


def test_given_pairs_as_text(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "q:", "chosen": " good", "rejected": " bad"}])
    assert texts(table_of(path, plain, "offline")[0], plain) == [("<s>q:", " good</s>", " bad</s>")]


def test_pairs_on_different_prompts_are_dropped_and_counted(chat: str, tmp_path: Path) -> None:
    good = {"chosen": conversation("q", "a"), "rejected": conversation("q", "b")}
    odd = {"chosen": conversation("q", "a"), "rejected": conversation("p", "b")}
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [good, odd, odd]), chat, "offline")
    assert report.dropped == {"whose chosen and rejected answer different prompts": 2}
    assert refusal(jsonl(tmp_path / "e.jsonl", [{"chosen": "a"}]), chat, "offline").endswith(
        "no column rejected; the columns are chosen"
    )


def test_rows_that_cannot_be_used_are_counted_by_reason(plain: str, tmp_path: Path) -> None:
    strict = with_template(plain, STRICT_TEMPLATE, tmp_path / "strict")
    rows = [
        {"messages": conversation("q", "a")},
        {"messages": conversation("q")},
        {"messages": conversation("q", "  ")},
        {"messages": conversation("", "a")[1:]},
        {"messages": "q"},
        {"messages": None},
        {"messages": [{"role": "user", "content": ["q"]}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]},
        {"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "system", "content": "s"}, *conversation("q", "a")]},
        {"prompt": "q", "completion": " "},
        {"prompt": "q", "completion": None},
        {"prompt": 3, "completion": "a"},
    ]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), strict)
    assert len(table) == report.used == 1
    assert report.read == len(rows)
    assert report.dropped == {
        "without an assistant turn": 1,
        "with an empty response": 2,
        "without a turn before the response": 1,
        "whose messages is no list of {role, content}": 2,
        "whose messages has a turn without role or with a content that is not text": 3,
        "refused by the chat template (user first)": 1,
        "whose prompt or completion is neither text nor a list of messages": 2,
    }
    assert str(report).startswith(f"{tmp_path / 'd.jsonl'}: 1 of 13 rows used; dropped: 3 whose messages has a turn")


def test_when_no_row_is_usable_the_reasons_are_named(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": "text"}] * 3)
    words = "0 of 3 rows used; dropped: 3 whose messages is no list of {role, content}"
    assert refusal(path, chat) == f"data.path: no usable row in {path}: {words}"


def long_row(prompt: int, response: int) -> dict[str, str]:
    """A row of that many tokens, <s> and </s> included: letters are tokens of their own."""
    return {"prompt": ("zyxwvu" * 99)[: prompt - 1], "completion": ("abcdfg" * 99)[: response - 1]}


def lengths(path: Path, model: str, **data: object) -> tuple[list[tuple[int, int]], DataReport]:
    table, report = table_of(path, model, **data)
    return [(len(table[i].prompt), len(table[i].response)) for i in range(len(table))], report


def test_a_row_within_max_length_is_kept_whole_however_long_its_prompt(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [long_row(28, 4)])
    found, report = lengths(path, plain, max_length=32, max_prompt_length=16)
    assert (found, report.truncated) == ([(28, 4)], 0)


def test_a_row_over_max_length_loses_response_tokens_on_the_right(plain: str, tmp_path: Path) -> None:
    row = long_row(16, 40)
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), plain, max_length=32, max_prompt_length=16)
    tokenizer = load_tokenizer(ModelConfig(path=plain))
    assert texts(table, plain) == [("<s>" + row["prompt"], row["completion"][:16])]
    assert EOS not in table[0].response
    assert (report.used, report.truncated) == (1, 1)
    assert tokenizer.eos_token_id == EOS


def test_a_prompt_over_its_limit_loses_tokens_on_the_left_first_or_drops_the_row(plain: str, tmp_path: Path) -> None:
    rows = [long_row(28, 10), long_row(28, 40), long_row(10, 10)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    limits = {"max_length": 32, "max_prompt_length": 16}
    table, report = table_of(path, plain, long_prompts="truncate", **limits)
    assert texts(table, plain) == [
        (rows[0]["prompt"][-16:], rows[0]["completion"] + "</s>"),
        (rows[1]["prompt"][-16:], rows[1]["completion"][:16]),
        ("<s>" + rows[2]["prompt"], rows[2]["completion"] + "</s>"),
    ]
    assert report.truncated == 2
    found, report = lengths(path, plain, **limits)
    assert found == [(10, 10)]
    assert report.dropped == {"over 32 tokens with a prompt over 16": 2}


def test_of_a_pair_the_longer_response_decides(plain: str, tmp_path: Path) -> None:
    row = {"prompt": "zyxwv", "chosen": "abc", "rejected": "abcdfg" * 9}
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), plain, "offline", max_length=20, max_prompt_length=8)
    assert [len(ids) for ids in table[0] if ids is not None] == [6, 4, 14]
    assert report.truncated == 1


def test_a_response_ends_at_its_first_end_of_sequence_token(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a</s>b"}, {"prompt": "q", "completion": "a"}])
    assert [response for _, response in texts(table_of(path, plain)[0], plain)] == ["a</s>", "a</s>"]


def test_prompt_and_response_ids_are_those_of_the_whole_text(chat: str, tmp_path: Path) -> None:
    """Where special tokens stand between the turns, as in most chat templates."""
    turns = conversation("what is the number", "the answer is the number", "the question", "is the answer")
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": turns}]), chat)
    tokenizer = load_tokenizer(ModelConfig(path=chat))
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*table[0].prompt, *table[0].response] == ids
    assert len(ids) < len(whole.encode()), "the tokenizer merges, or the test says nothing"


def test_the_demos_conversations_are_tokenised_as_a_whole_would_be(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    turns = conversation("write 3 numbers with sum 12 ascending", "1 2 9")
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": turns}]), str(tmp_path / "model"))
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path / "model")))
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert [*table[0].prompt, *table[0].response] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in table[0].prompt


def test_a_chat_template_from_a_file_serves_a_tokenizer_without_one(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}])
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    config = DataConfig(path=str(path), chat_template=str(tmp_path / "t.jinja"))
    table, tokenizer, _ = load_table(config, ModelConfig(path=plain), "sapo")
    assert texts(table, plain) == [("<|user|>q</s><|assistant|>", "a</s>")]
    assert tokenizer.chat_template == TEMPLATE
    assert "has no chat template: name one in data.chat_template" in refusal(path, plain)
    assert refusal(path, plain, chat_template="none.jinja").startswith("data.chat_template none.jinja: can't be read")


@pytest.mark.parametrize("stem", ["zephyr", "chatml"])
def test_the_recipes_templates_render_a_prompt_that_opens_the_whole(plain: str, tmp_path: Path, stem: str) -> None:
    template = REPOSITORY / "configs" / "templates" / f"{stem}.jinja"
    path = jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": "system", "content": "s"}, *conversation("q", "a")]}])
    table, report = table_of(path, plain, chat_template=str(template))
    ((prompt, response),) = texts(table, plain)
    assert report.used == 1
    assert response.startswith("a")
    assert table[0].response[-1] == EOS
    assert prompt.endswith("assistant|>\n" if stem == "zephyr" else "<|im_start|>assistant\n")


def test_max_rows_counts_usable_rows(chat: str, tmp_path: Path) -> None:
    rows = [{"messages": conversation("q", f"{i}" if i % 2 else "")} for i in range(20)]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), chat, max_rows=3)
    assert [response for _, response in texts(table, chat)] == ["1</s>", "3</s>", "5</s>"]
    assert report.used == 3


def test_a_byte_order_mark_and_blank_lines_are_no_rows(plain: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "q", "completion": "a"}\n\n   \n')
    assert table_of(tmp_path / "d.jsonl", plain)[1].read == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"prompt": "q", "completion": "a"}\n{"prompt": "\xe9"}\n',
         ":2: not UTF-8: invalid continuation byte at byte 12 of the line"),
        (b'{"prompt": "q", "completion": "a"}\n{"prompt": \n',
         ":2: not JSON: Expecting value; one object a line is expected"),
        (b"[1, 2]\n", ":1: an object is expected, found list"),
        (b'{"question": "q", "answer": "a"}\n',
         ": no column 'messages' and no 'prompt' with 'completion'; the columns are question, answer"),
    ],
)
def test_a_broken_line_is_named(plain: str, tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    assert refusal(path, plain) == f"data.path {path}{line}"


def test_paths_without_readable_rows_are_refused(plain: str, tmp_path: Path) -> None:
    def said(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return refusal(tmp_path / name, plain).removeprefix("data.path ").replace(f"{tmp_path}/", "")

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_info.json").write_text("{}")
    assert said("none.jsonl") == "none.jsonl: no such file or folder"
    assert said("empty.jsonl", b"").endswith("no usable row in empty.jsonl: 0 of 0 rows used")
    assert said("text.parquet", b"hello").startswith("text.parquet: not readable as Parquet: ")
    assert said("data.csv", b"a,b\n") == "data.csv: unknown kind of file; .jsonl and .parquet are read"
    assert said("empty") == "empty: holds neither a saved dataset nor .jsonl or .parquet files"
    assert said("broken").startswith("broken: not readable as a saved dataset: ")


def test_a_hub_name_is_asked_for_and_refused_when_offline(plain: str) -> None:
    """A dot in a dataset's name does not make it a file."""
    assert refusal("some-owner/no-such-data-2.5", plain).startswith(
        "data.path some-owner/no-such-data-2.5: no local file or folder, nor loadable from the hub: "
    )


def test_a_model_without_a_tokenizer_is_refused(plain: str, tmp_path: Path) -> None:
    def said(path: str, **more: str) -> str:
        with pytest.raises(UserError) as refused:
            load_tokenizer(ModelConfig.model_validate({"path": path} | more))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "tokenizer.json").write_text("{")
    (tmp_path / "garbage" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert said(str(tmp_path / "none")) == f"model.path {tmp_path / 'none'}: no such folder"
    assert said("runs/start/checkpoints/none") == "model.path runs/start/checkpoints/none: no such folder"
    assert said(plain, tokenizer="./none") == "model.tokenizer ./none: no such folder"
    for path in (str(tmp_path / "empty"), str(tmp_path / "garbage"), "some-owner/no-such-model"):
        assert said(path).startswith(f"model.path {path}: no tokenizer could be loaded: ")


def test_a_missing_model_is_refused_though_its_tokenizer_is_elsewhere(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(UserError, match=r"^model\.path /none/such: no such folder$"):
        load_table(DataConfig(path=str(path)), ModelConfig(path="/none/such", tokenizer=plain), "sapo")
