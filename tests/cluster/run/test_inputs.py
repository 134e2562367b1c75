"""A run's inputs: rows with the end tokens that they were cut at, and the number of steps."""

from __future__ import annotations

from pathlib import Path

from cluster.config.loading import validate_config
from cluster.run.inputs import count_steps, read_inputs
from support.chat_styles import STYLES, write_tokenizer
from support.dataset_rows import conversation, jsonl


def test_rows_and_engines_of_a_run_have_the_same_ends(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "model", STYLES["llama-3"])
    data = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}] * 64)
    values = {"model": {"path": str(tmp_path / "model")}, "data": {"path": str(data)}}
    config = validate_config(values, "test")
    inputs = read_inputs(config)
    assert inputs.ends.ids == (1, 5, 4)
    assert {int(inputs.table[i].response[-1]) for i in range(64)} == {inputs.ends.closing} == {4}
    assert count_steps(config, inputs) == 8
    assert count_steps(validate_config(values | {"learner": {"steps": 0}}, "test"), inputs) == 0
