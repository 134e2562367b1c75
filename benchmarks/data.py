"""Loading data: memory a token, rows a second, and the start that finds them tokenised.

    python -m benchmarks.data [--rows 20000] [--words 400]
    python -m benchmarks.data --rows 1000000 --words 490 --no-peer

Conversations of a question and an answer are written to a JSON Lines file and loaded as a run loads them, in a process
of its own: by `cluster.data.loading` for the first time, again (from the cache), and by the peer, ``datasets.map`` over
TRL's tokenising of the same rows, whose result lies in Arrow files. "memory" is the highest resident set beyond that
before loading, "whole process" with it; mapped files count when they are read. Neither rows nor file are ever in memory
as a whole, so that the number of rows is limited by the disk: a million of 500 tokens take 3.4 GB there, and 2 GB more
for the cache.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, save, table_of

PEER = "datasets and TRL"
WARM_ROWS = 300
WORDS = 3000
"""Of the made-up language; its tokenizer has about a token a word."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=400, help="of question and answer together, on average")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments.way, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        write_inputs(Path(folder), arguments.rows, arguments.words)
        ways = ["first", "cached", *([PEER] if arguments.peer else [])]
        results = {way: in_a_process(way, folder) for way in ways}
    rows = [
        [
            way,
            f"{found['seconds']:.1f}",
            f"{found['cpu_s']:.1f}",
            f"{arguments.rows / found['cpu_s']:.0f}",
            f"{found['tokens'] / 1e6:.1f} M",
            f"{found['peak_bytes'] / 1e6:.0f} MB",
            f"{found['peak_bytes'] / found['tokens']:.1f}",
            f"{found['process_bytes'] / 1e6:.0f} MB",
        ]
        for way, found in results.items()
    ]
    head = ["", "seconds", "CPU seconds", "rows per CPU second", "tokens", "memory", "bytes a token", "whole process"]
    print(table_of(head, rows))
    save("data", {"machine": machine(), "arguments": vars(arguments), "results": results})


def write_inputs(folder: Path, rows: int, words: int) -> None:
    """The rows, and a tokenizer that was trained on their language."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    draw, numbers = random.Random(0), np.random.default_rng(0)
    language = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(WORDS)]

    def text(count: int) -> str:
        return " ".join([language[i] for i in numbers.integers(WORDS, size=count).tolist()])

    with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
        for _ in range(rows):
            asked = draw.randint(1, words)
            turns = [
                {"role": "user", "content": text(asked)},
                {"role": "assistant", "content": text(draw.randint(1, words))},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(
        [" ".join(language)] * 2,
        trainers.BpeTrainer(
            vocab_size=8000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[2], bos_token=special[0])
    template = Path(__file__).parent.parent / "configs" / "templates" / "chatml.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder / "model")


def in_a_process(way: str, folder: str) -> dict[str, Any]:
    """``measured`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--way", way, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(way: str, folder: str) -> dict[str, Any]:
    """Seconds, CPU seconds, tokens and bytes of one way."""
    load = _with_datasets if way == PEER else _with_tables
    load(folder, WARM_ROWS)  # what is imported and compiled once is not the data's
    before, started, cpu = _peak_bytes(), time.monotonic(), time.process_time()
    tokens = load(folder, None)
    return {
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "tokens": tokens,
        "peak_bytes": _peak_bytes() - before,
        "process_bytes": _peak_bytes(),
    }


def _with_tables(folder: str, most: int | None) -> int:
    from cluster.config.sections import DataConfig
    from cluster.data.ends import read_ends
    from cluster.data.loading import load_tables
    from cluster.data.tokenizer import load_tokenizer
    from learner.config import ModelConfig

    model = ModelConfig(path=f"{folder}/model")
    cache = f"{folder}/cache" if most is None else None
    data = DataConfig(path=f"{folder}/rows.jsonl", cache_dir=cache, max_rows=most)
    tokenizer = load_tokenizer(model)
    table = load_tables(data, "sft", tokenizer, read_ends(model, tokenizer)).train
    columns = (table.prompts.flat, table.responses.flat)
    assert all(column.min() >= 0 for column in columns), "every token is read once, so that mapped files count"
    return sum(map(len, columns))


def _with_datasets(folder: str, most: int | None) -> int:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.data_utils import _tokenize, common_prefix_length

    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")

    def tokenised(row: dict[str, Any]) -> dict[str, Any]:
        turns = row["messages"]
        asked = _tokenize(tokenizer, turns[:-1], add_generation_prompt=True)["input_ids"]
        whole = _tokenize(tokenizer, turns)["input_ids"]
        return {"input_ids": whole, "split": common_prefix_length(asked, whole)}

    rows = Dataset.from_json(f"{folder}/rows.jsonl", cache_dir=f"{folder}/datasets")
    rows = rows if most is None else rows.select(range(most))
    done = rows.map(tokenised, remove_columns=["messages"])
    return sum(
        len(batch.column("input_ids").combine_chunks().flatten()) for batch in done.with_format("arrow").iter(1000)
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
