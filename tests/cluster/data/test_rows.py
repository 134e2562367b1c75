"""The same rows are read from every kind of file; what can't be read is named with its line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.dataset_rows import conversation, jsonl, rejection, table_of, texts


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
    expected = [(f"<s><|user|>question {i}</s><|assistant|>", f"answer {i}</s>") for i in range(5)]
    for name in ("d.jsonl", "d.parquet", "folder", "saved", "dict"):
        table, report = table_of(tmp_path / name, chat)
        assert texts(table, chat) == expected, name
        assert (report.read, report.used) == (5, 5)
    table, _ = table_of(tmp_path / "dict", chat, split="test")
    assert texts(table, chat) == expected[:1]
    assert rejection(tmp_path / "dict", chat, split="dev") == f"data.split dev: {tmp_path / 'dict'} has train, test"


def test_a_byte_order_mark_and_blank_lines_are_no_rows(plain: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "q", "completion": "a"}\n\n   \n')
    assert table_of(tmp_path / "d.jsonl", plain)[1].read == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b'{"prompt": "q", "completion": "a"}\n{"prompt": "\xe9"}\n',
            ":2: not UTF-8: invalid continuation byte at byte 12 of the line",
        ),
        (
            b'{"prompt": "q", "completion": "a"}\n{"prompt": \n',
            ":2: not JSON: Expecting value; one object a line is expected",
        ),
        (b"[1, 2]\n", ":1: an object is expected, found int"),
        (
            b'{"question": "q", "answer": "a"}\n',
            ": no column 'messages' and no 'prompt' with 'completion'; the columns are question, answer; "
            "name them in data.messages_column, or in data.prompt_column and data.completion_column",
        ),
    ],
)
def test_a_broken_line_is_named(plain: str, tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    assert rejection(path, plain) == f"data.path {path}{line}"


def test_paths_without_readable_rows_are_rejected(plain: str, tmp_path: Path) -> None:
    def said(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return rejection(tmp_path / name, plain).removeprefix("data.path ").replace(f"{tmp_path}/", "")

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_info.json").write_text("{}")
    assert said("none.jsonl") == "none.jsonl: no such file or folder"
    assert said("empty.jsonl", b"").endswith("no usable row in empty.jsonl: 0 of 0 rows used")
    assert said("text.parquet", b"hello").startswith("text.parquet: not readable as Parquet: ")
    assert (
        said("data.csv", b"a,b\n")
        == "data.csv: unknown kind of file; .jsonl, .json, .parquet, .arrow are read, JSON also as .gz, .zst"
    )
    assert said("empty") == "empty: holds neither a saved dataset nor .jsonl, .json, .parquet, .arrow files"
    assert said("broken").startswith("broken: not readable as a saved dataset: ")


def test_a_hub_name_is_asked_for_and_rejected_when_offline(plain: str) -> None:
    """A dot in a dataset's name does not make it a file."""
    assert rejection("some-owner/no-such-data-2.5", plain).startswith(
        "data.path some-owner/no-such-data-2.5: no local file or folder, nor loadable from the hub: "
    )
