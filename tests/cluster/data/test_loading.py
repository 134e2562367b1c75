"""Datasets of a run: several by weight, a part held out, and large ones tokenised once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.token_table import DatasetShare
from cluster.config.loading import validate_config
from cluster.config.sections import DataConfig
from cluster.data import loading
from cluster.data.cache import Tables
from cluster.data.ends import end_tokens
from cluster.data.loading import load_tables
from cluster.data.tokenizer import load_tokenizer
from contracts.errors import UserError
from learner.config import ModelConfig
from support.dataset_rows import conversation, jsonl, texts


def tables_of(model: str, method: str = "sft", **data: object) -> Tables:
    config = DataConfig.model_validate({"cache_dir": None} | data)
    tokenizer = load_tokenizer(ModelConfig(path=model), config.chat_template, config.bos)
    return load_tables(config, method, tokenizer, end_tokens(tokenizer))


def rows(count: int, word: str = "a") -> list[dict[str, str]]:
    return [{"prompt": f"q{i}", "completion": f" {word}{i}"} for i in range(count)]


def rejection(model: str, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        tables_of(model, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_dataset_of_a_run_is_named_by_its_own_option(chat: str, tmp_path: Path) -> None:
    good = {"path": str(jsonl(tmp_path / "d.jsonl", rows(3)))}
    bad = jsonl(tmp_path / "bad.jsonl", ["text"])
    for name, words in ((tmp_path / "none.jsonl", "no such file or folder"), (bad, "an object is expected, found str")):
        sources: dict[str, Any] = {"sources": [good, {"path": str(name)}]}
        assert re.match(rf"data.sources.1.path {name}.*: {words}", rejection(chat, **sources))
        assert re.match(rf"data.held_out {name}.*: {words}", rejection(chat, **good, held_out=str(name)))
    nothing = jsonl(tmp_path / "empty.jsonl", [{"prompt": "q", "completion": ""}])
    sources = {"sources": [good, {"path": str(nothing)}]}
    assert rejection(chat, **sources).startswith("data.sources.1.path: no usable row in ")
    sources = {"sources": [good, good | {"split": "test"}]}
    assert rejection(chat, **sources).startswith("data.sources.1.split test: data.sources.1.path ")
    other = jsonl(tmp_path / "other.jsonl", [{"question": "q"}])
    assert rejection(chat, **good, held_out=str(other)).startswith(f"data.held_out {other}: no column")


def test_several_datasets_lie_one_after_another_with_their_weights(plain: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", rows(3))
    jsonl(tmp_path / "b.jsonl", [*rows(2, "b"), {"prompt": "q"}])
    sources = [{"path": str(tmp_path / "a.jsonl"), "weight": 2}, {"path": str(tmp_path / "b.jsonl")}]
    tables = tables_of(plain, sources=sources)
    assert [response for _, response in texts(tables.train, plain)] == [
        " a0</s>",
        " a1</s>",
        " a2</s>",
        " b0</s>",
        " b1</s>",
    ]
    assert tables.train.shares == (DatasetShare(0, 3, 2.0), DatasetShare(3, 2, 1.0))
    assert [(report.used, report.read) for report in tables.reports] == [(3, 3), (2, 3)]


def test_one_dataset_has_no_shares(plain: str, tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", rows(3)))
    assert tables_of(plain, sources=[{"path": path}]).train.shares == ()
    assert tables_of(plain, path=path).train.shares == ()


def test_a_fraction_is_held_out_by_prompt(chat: str, tmp_path: Path) -> None:
    talks = [{"messages": conversation(f"q{i % 100}", f"a{i}", "r", f"b{i}")} for i in range(400)]
    path = str(jsonl(tmp_path / "d.jsonl", talks))
    for turns in ("last", "all"):
        tables = tables_of(chat, path=path, held_out=0.2, turns=turns)
        assert tables.held_out is not None
        asked = [{text.split("</s>")[0] for text, *_ in texts(t, chat)} for t in (tables.train, tables.held_out)]
        assert not asked[0] & asked[1], "a prompt is on one side"
        assert len(tables.train) + len(tables.held_out) == (400 if turns == "last" else 800)
        assert 0.1 < len(asked[1]) / 100 < 0.3
        assert tables.reports[0].held_out == len(tables.held_out)
        again = tables_of(chat, path=path, held_out=0.2, turns=turns).held_out
        assert again is not None
        assert np.array_equal(again.responses.flat, tables.held_out.responses.flat)


def test_nothing_is_held_out_by_default(plain: str, tmp_path: Path) -> None:
    assert tables_of(plain, path=str(jsonl(tmp_path / "d.jsonl", rows(3)))).held_out is None


@pytest.mark.parametrize(("method", "pairs"), [("sapo", True), ("sft", False)])
def test_a_held_out_dataset_is_read_as_pairs_where_it_has_them(
    plain: str, tmp_path: Path, method: str, pairs: bool
) -> None:
    path = str(jsonl(tmp_path / "d.jsonl", rows(3)))
    held = [{"prompt": f"h{i}", "completion": " c", "chosen": " c", "rejected": " d"} for i in range(9)]
    held_out = str(jsonl(tmp_path / "h.jsonl", held))
    tables = tables_of(plain, method, path=path, held_out=held_out, held_out_rows=4)
    assert tables.held_out is not None
    assert (len(tables.train), len(tables.held_out)) == (3, 4)
    assert texts(tables.held_out, plain)[0] == (("<s>h0", " c</s>", " d</s>") if pairs else ("<s>h0", " c</s>"))
    assert tables.reports[1].lines()[0].startswith(f"{held_out} (data.held_out): 4 of ")


def cached(model: str, folder: Path, **data: Any) -> tuple[Tables, list[str]]:
    tables = tables_of(model, cache_dir=str(folder), **data)
    return tables, sorted(p.name for p in (folder / "data").iterdir())


def test_large_data_are_tokenised_once(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGE_BYTES", 1)
    kept = tmp_path / "kept"
    path = jsonl(tmp_path / "d.jsonl", [*rows(50), {"prompt": "q", "completion": ""}])
    first, entries = cached(plain, kept, path=str(path), held_out=0.2)
    assert len(entries) == 1
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "d.jsonl"
    (tmp_path / "elsewhere").rename(moved)
    monkeypatch.setattr(loading, "_tokenised", lambda *_: pytest.fail("tokenised again"))
    again, _ = cached(plain, kept, path=str(moved), held_out=0.2)
    for one, other in ((first.train, again.train), (first.held_out, again.held_out)):
        assert one is not None and other is not None
        assert np.array_equal(one.prompts.flat, other.prompts.flat)
        assert np.array_equal(one.responses.offsets, other.responses.offsets)
        assert isinstance(other.responses.flat, np.memmap), "nothing is read before it is used"
    assert [r.dropped for r in again.reports] == [r.dropped for r in first.reports] == [{"with an empty response": 1}]
    assert again.reports[0].first == {"with an empty response": "d.jsonl:51"}


def test_whatever_changes_tokens_is_another_entry(
    plain: str, chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LARGE_BYTES", 1)
    kept, path = tmp_path / "kept", jsonl(tmp_path / "d.jsonl", rows(9))
    changes: list[tuple[str, dict[str, object]]] = [
        (plain, {}),
        (chat, {}),
        (plain, {"max_length": 64, "max_prompt_length": 32}),
        (plain, {"max_rows": 3}),
        (plain, {"held_out": 0.4}),
        (plain, {"template_date": "2025-01-01"}),
    ]
    for number, (model, data) in enumerate(changes, 1):
        assert len(cached(model, kept, path=str(path), **data)[1]) == number
    jsonl(path, rows(9, "b"))
    tables, entries = cached(plain, kept, path=str(path))
    assert len(entries) == len(changes) + 1
    assert texts(tables.train, plain)[0][1] == " b0</s>"


def test_a_damaged_entry_is_made_again(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGE_BYTES", 1)
    kept, path = tmp_path / "kept", jsonl(tmp_path / "d.jsonl", rows(9))
    _, (entry,) = cached(plain, kept, path=str(path))
    for damage in (b"", b"{", b"[]"):
        (kept / "data" / entry / "report.json").write_bytes(damage)
        tables, entries = cached(plain, kept, path=str(path))
        assert (len(tables.train), entries) == (9, [entry])
    (kept / "data" / entry / "train-responses.npy").write_bytes(b"x")
    assert len(cached(plain, kept, path=str(path))[0].train) == 9


def test_a_cache_that_can_not_be_written_is_named(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGE_BYTES", 1)
    (tmp_path / "file").write_text("")
    path = str(jsonl(tmp_path / "d.jsonl", rows(3)))
    with pytest.raises(UserError, match=r"^data\.cache_dir .*file: .*file is no folder; name another folder, or null$"):
        tables_of(plain, path=path, cache_dir=str(tmp_path / "file"))


def test_small_data_are_not_kept(plain: str, tmp_path: Path) -> None:
    tables_of(plain, path=str(jsonl(tmp_path / "d.jsonl", rows(3))), cache_dir=str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "data.path: required and not given; or data.sources"),
        ({"path": "a", "sources": [{"path": "b"}]}, "data.sources: set it or data.path a, not both"),
        ({"sources": [{"path": "b", "weight": 0}]}, "data.sources.0.weight 0: must be greater than 0"),
        (
            {"sources": [{"path": "b", "weigth": 2}]},
            "data.sources.0.weigth: unknown key; did you mean data.sources.0.weight?",
        ),
        (
            {"path": "a", "held_out": 0.7},
            "data.held_out 0.7: must be a fraction above 0 and up to 0.5, the path of a dataset, or null for none",
        ),
        ({"path": "a", "turns": "first"}, "data.turns first: must be 'last' or 'all'"),
        ({"path": "a", "template_date": "yesterday"}, "data.template_date yesterday: must be a date, as 2024-07-26"),
    ],
)
def test_a_configuration_that_can_not_be_meant_is_named(data: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_config(json.loads(json.dumps({"model": {"path": "m"}, "data": data})), "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {words}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"method": "offline", "data": {"path": "a", "turns": "all"}},
            "data.turns all: a pair has one response on each",
        ),
        ({"method": "replay", "data": {"sources": [{"path": "a"}]}}, 'data.sources ["a"]: a recording is one file'),
    ],
)
def test_a_method_that_can_not_use_it_says_so(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_config({"model": {"path": "m"}} | values, "run.yaml")
    assert words in str(caught.value)
