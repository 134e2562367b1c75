"""Of a folder, the files of the wanted split are read, and what is left out is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.data.files import split_files
from contracts.errors import UserError
from support.dataset_rows import jsonl, table_of, texts

FOUND: dict[str, tuple[list[str], str, list[str], list[str]]] = {
    "no name names a split": (["a.jsonl", "b.parquet"], "train", ["a.jsonl", "b.parquet"], []),
    "train and test": (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"], ["test.jsonl"]),
    "the other of them": (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"], ["train.jsonl"]),
    "shards": (
        ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "test-00000-of-00001.parquet"],
        "train",
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["test-00000-of-00001.parquet"],
    ),
    "compressed": (["train.jsonl.gz", "val.jsonl.zst"], "train", ["train.jsonl.gz"], ["val.jsonl.zst"]),
    "a hub clone": (
        ["README.md", "dataset_infos.json", "data/train-0.parquet", "data/test-0.parquet", ".git/x.json"],
        "train",
        ["data/train-0.parquet"],
        ["data/test-0.parquet"],
    ),
    "a folder for each split": (
        ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"],
        "train",
        ["train/a.jsonl", "train/b.jsonl"],
        ["test/a.jsonl"],
    ),
    "one folder": (["en/train.jsonl", "en/dev.jsonl"], "train", ["en/train.jsonl"], ["en/dev.jsonl"]),
    "validation by its other names": (["train.json", "dev.json"], "validation", ["dev.json"], ["train.json"]),
    "dev by its name": (["train.json", "validation.json"], "dev", ["validation.json"], ["train.json"]),
    "a split of its own": (
        ["train_sft-0.parquet", "train_gen-0.parquet", "test_sft-0.parquet"],
        "train",
        ["train_gen-0.parquet", "train_sft-0.parquet"],
        ["test_sft-0.parquet"],
    ),
    "words that hold others": (["pretrain.jsonl", "contest.jsonl"], "train", ["contest.jsonl", "pretrain.jsonl"], []),
    "a file without a split beside one": (["train.jsonl", "extra.jsonl"], "train", ["train.jsonl"], ["extra.jsonl"]),
}


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize("layout", FOUND)
def test_files_of_one_split_are_read(tmp_path: Path, layout: str) -> None:
    names, split, wanted, left_out = FOUND[layout]
    write(tmp_path, names)
    found, rest = split_files(tmp_path, split)
    assert [str(file.relative_to(tmp_path)) for file in found] == wanted
    assert [str(file.relative_to(tmp_path)) for file in rest] == left_out


REJECTED: dict[str, tuple[list[str], str, str]] = {
    "nothing": (["README.md"], "train", "data.path {}: holds neither a saved dataset nor "),
    "another split": (["test.jsonl", "dev.jsonl"], "train", "data.split train: {} has test, validation"),
    "several datasets": (
        ["en/train.jsonl", "fr/train.jsonl"],
        "train",
        "data.path {}: holds several datasets (en, fr): name one of these folders",
    ),
    "a split that no name names": (
        ["a.jsonl"],
        "test",
        "data.split test: no file of {} names a split, so all are train",
    ),
}


@pytest.mark.parametrize("layout", REJECTED)
def test_a_folder_of_which_it_can_not_be_told_is_rejected(tmp_path: Path, layout: str) -> None:
    names, split, words = REJECTED[layout]
    write(tmp_path, names)
    with pytest.raises(UserError) as caught:
        split_files(tmp_path, split)
    assert str(caught.value).startswith(words.format(tmp_path))


def test_rows_of_another_split_are_not_trained_on_and_that_is_shown(plain: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"prompt": "q", "completion": " a"}])
    jsonl(tmp_path / "test.jsonl", [{"prompt": "q", "completion": " b"}])
    table, report = table_of(tmp_path, plain)
    assert texts(table, plain) == [("<s>q", " a</s>")]
    assert report.lines() == [f"{tmp_path}: 1 of 1 rows used", "not read: test.jsonl"]
