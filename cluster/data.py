"""Reads supervised rows or given pairs, renders them with the chat template, and turns them into token ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.tokens import TokenTable
from buffer.errors import UserError
from cluster.config import DataConfig
from learner.config import ModelConfig

CHUNK_ROWS = 1000
"""Rows tokenised at a time."""
Conversation = list[dict[str, str]]
Texts = tuple[str, ...]
"""(prompt, response) or (prompt, chosen, rejected), rendered."""


class Unusable(Exception):
    """A row that can't be used; the message is the reason under which it is counted."""


@dataclass
class DataReport:
    """What became of the rows."""

    source: str
    read: int = 0
    used: int = 0
    truncated: int = 0
    """Rows that lost prompt or response tokens to a length limit and are used."""
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        text = f"{self.source}: {self.used} of {self.read} rows used"
        if self.truncated:
            text += f", {self.truncated} of them truncated"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return text + (f"; dropped: {reasons}" if reasons else "")


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: there is none at the path, or it knows no end-of-sequence token.
    """
    path = model.tokenizer or model.path
    key = "model.tokenizer" if model.tokenizer else "model.path"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{key} {path}: no tokenizer could be loaded: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key} {path}: the tokenizer has no end-of-sequence token")
    return tokenizer


def load_table(
    data: DataConfig, model: ModelConfig, method: str
) -> tuple[TokenTable, PreTrainedTokenizerBase, DataReport]:
    """Token ids of all usable rows, and what happened to the others.

    Raises:
        UserError: the data can't be read, have none of the named columns, or no row is usable.
    """
    tokenizer = load_tokenizer(model)
    report = DataReport(data.path)
    rows = []
    pairs = method == "offline"
    texts = _texts(read_rows(data), data, tokenizer, report, pairs=pairs)
    while chunk := list(islice(texts, CHUNK_ROWS)):
        for ids in _tokenised(chunk, tokenizer):
            try:
                rows.append(_fitted(ids, data, report))
            except Unusable as reason:
                report.dropped[str(reason)] += 1
            if len(rows) == data.max_rows:
                break
        if len(rows) == data.max_rows:
            break
    report.used = len(rows)
    if not rows:
        raise UserError(f"data.path no usable row: {report}")
    return TokenTable.from_rows(rows), tokenizer, report


def read_rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL or Parquet file, of a folder (of such files, or saved by ``datasets``), or of a hub dataset.

    Raises:
        UserError: nothing readable is there; names file and line.
    """
    path = Path(data.path)
    if path.is_file():
        yield from _file_rows(path)
    elif path.is_dir():
        yield from _folder_rows(path, data.split)
    elif path.suffix or path.is_absolute() or data.path.startswith("."):
        raise UserError(f"data.path {path}: no such file or folder")
    else:
        yield from _hub_rows(data)


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK_ROWS):
                    yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"data.path {path}: not readable as Parquet: {_first_line(error)}") from error
    elif path.suffix in (".jsonl", ".json"):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"data.path {path}:{number}: not JSON: {error.msg}") from error
                if not isinstance(row, dict):
                    raise UserError(f"data.path {path}:{number}: an object is expected, found {type(row).__name__}")
                yield row
    else:
        raise UserError(f"data.path {path}: unknown kind of file; .jsonl and .parquet are read")


def _folder_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        from datasets import DatasetDict, load_from_disk

        loaded = load_from_disk(str(path))
        if isinstance(loaded, DatasetDict):
            if split not in loaded:
                raise UserError(f"data.split {split}: {path} has {', '.join(loaded)}")
            loaded = loaded[split]
        yield from loaded
        return
    files = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".parquet"))
    if not files:
        raise UserError(f"data.path {path}: holds neither a saved dataset nor .jsonl or .parquet files")
    for file in files:
        yield from _file_rows(file)


def _hub_rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(data.path, split=data.split)
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same to the user
        raise UserError(
            f"data.path {data.path}: no local file or folder, nor loadable from the hub: {_first_line(error)}"
        ) from error


def _texts(
    rows: Iterable[dict[str, Any]], data: DataConfig, tokenizer: PreTrainedTokenizerBase, report: DataReport, *,
    pairs: bool,
) -> Iterator[Texts]:  # fmt: skip
    for row in rows:
        report.read += 1
        try:
            yield _pair_texts(row, data, tokenizer) if pairs else _supervised_texts(row, data, tokenizer)
        except Unusable as reason:
            report.dropped[str(reason)] += 1


def _supervised_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    if data.messages_column in row:
        return _conversation_texts(row[data.messages_column], data.messages_column, tokenizer)
    if data.prompt_column in row and data.completion_column in row:
        return _turn_texts(row[data.prompt_column], row[data.completion_column], tokenizer)
    raise UserError(
        f"data.path {data.path}: no column {data.messages_column!r} and no {data.prompt_column!r} with "
        f"{data.completion_column!r}; the columns are {', '.join(row)}"
    )


def _pair_texts(row: dict[str, Any], data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    missing = [name for name in (data.chosen_column, data.rejected_column) if name not in row]
    if missing:
        raise UserError(f"data.path {data.path}: no column {', '.join(missing)}; the columns are {', '.join(row)}")
    chosen, rejected = row[data.chosen_column], row[data.rejected_column]
    if data.prompt_column in row and (isinstance(chosen, str) or len(chosen) == 1):
        prompt = row[data.prompt_column]
        prompt_text, chosen_text = _turn_texts(prompt, chosen, tokenizer)
        other_prompt, rejected_text = _turn_texts(prompt, rejected, tokenizer)
    else:
        prompt_text, chosen_text = _conversation_texts(chosen, data.chosen_column, tokenizer)
        other_prompt, rejected_text = _conversation_texts(rejected, data.rejected_column, tokenizer)
    if prompt_text != other_prompt:
        raise Unusable("chosen and rejected answer different prompts")
    return prompt_text, chosen_text, rejected_text


def _turn_texts(prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompt and completion as strings are taken as they are; as messages they are rendered."""
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise Unusable("empty response")
        return prompt, completion
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return _conversation_texts([*prompt, *completion], "prompt and completion", tokenizer)


def _conversation_texts(messages: Any, column: str, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """The last assistant turn is the response, everything before it the prompt."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise UserError(
            f"data: column {column!r} holds {str(messages)[:60]!r}; a list of {{role, content}} is expected"
        )
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise Unusable("without an assistant turn")
    if not (messages[last].get("content") or "").strip():
        raise Unusable("empty response")
    if last == 0:
        raise Unusable("without a turn before the response")
    if tokenizer.chat_template is None:
        raise UserError(
            f"data: column {column!r} holds conversations and the tokenizer {tokenizer.name_or_path} has no chat "
            "template; use a tokenizer that has one, or prompt/completion columns"
        )
    prompt = tokenizer.apply_chat_template(messages[:last], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages[: last + 1], tokenize=False)
    if not whole.startswith(prompt):
        raise Unusable("rendered by a chat template whose prompt is no prefix of the whole")
    return prompt, whole[len(prompt) :]


def _tokenised(texts: list[Texts], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Ids of each part on its own, so that a response's ids don't depend on what is before it."""
    chat = tokenizer.chat_template is not None
    prompts = tokenizer([t[0] for t in texts], add_special_tokens=not chat)["input_ids"]
    if not chat:
        prompts = [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in prompts]
    columns = [prompts]
    for part in range(1, len(texts[0])):
        columns.append(tokenizer([t[part] for t in texts], add_special_tokens=False)["input_ids"])
    for ids in zip(*columns, strict=True):
        yield [list(ids[0]), *(_ended(list(response), tokenizer.eos_token_id) for response in ids[1:])]


def _ended(response: list[int], eos: int) -> list[int]:
    """Up to the first end-of-sequence token, which is put there if the text has none."""
    return response[: response.index(eos) + 1] if eos in response else [*response, eos]


def _fitted(ids: list[list[int]], data: DataConfig, report: DataReport) -> list[list[int]]:
    """Within the length limits: a prompt loses tokens on its left, then responses on their right."""
    prompt, *responses = ids
    if not prompt:
        raise Unusable("with an empty prompt")
    before = sum(map(len, ids))
    if len(prompt) > data.max_prompt_length:
        if data.long_prompts == "drop":
            raise Unusable(f"with a prompt over {data.max_prompt_length} tokens")
        prompt = prompt[-data.max_prompt_length :]
    room = data.max_length - len(prompt)
    responses = [response[:room] for response in responses]
    report.truncated += before != len(prompt) + sum(map(len, responses))
    return [prompt, *responses]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
