"""A resumed run is the same run, or says what is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from cluster.run.fingerprint import fingerprint
from cluster.run.resume_guard import BY_THE_CHECKPOINT, FREE, validate_same_data, validate_same_run
from cluster.storage.run_folder import as_yaml
from contracts.errors import UserError
from support.pairs import generated


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "data": {"path": "d"}}
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
    return RunConfig.model_validate(values)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(as_yaml(config()))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"learner": {"steps": 900}},
        {"learner": {"ranks": 2, "tokens_per_batch": 4096}},
        {"generation": {"actors": 3}, "buffer": {"shards": 4}},
        {"logging": {"samples": 1}, "checkpoint": {"every": 7}, "recovery": {"restarts": 0}},
        {"cluster": {"cpus": 3}, "output_dir": "elsewhere"},
    ],
)
def test_how_long_how_fast_and_where_may_change(checkpoint: Path, changes: dict[str, Any]) -> None:
    said = validate_same_run(config(**changes), checkpoint, [])
    assert all(" -> " in line for line in said)
    assert said == sorted(said)


@pytest.mark.parametrize(
    ("changes", "key", "old"),
    [
        ({"seed": 5}, "seed 5", "0"),
        ({"model": {"path": "other"}}, "model.path other", "m"),
        ({"model": {"lora": {"alpha": 8}}}, "model.lora {", "null"),
        ({"objective": {"beta": 0.3}}, "objective.beta 0.3", "0.1"),
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr 0.0001", "5e-07"),
        ({"learner": {"batch_size": 64}}, "learner.batch_size 64", "32"),
        ({"weights": {"max_staleness": 2}}, "weights.max_staleness 2", "0"),
        ({"generation": {"temperature": 1.0}}, "generation.temperature 1.0", "0.7"),
        ({"ema": {"decay": 0.9}}, "ema.decay 0.9", ""),
    ],
)
def test_what_is_computed_must_not_change_unless_it_is_named(
    checkpoint: Path, changes: dict[str, Any], key: str, old: str
) -> None:
    changed = config(**changes)
    with pytest.raises(UserError) as rejected:
        validate_same_run(changed, checkpoint, [])
    assert str(rejected.value).startswith(key)
    assert f"{checkpoint} was made with {old}" in str(rejected.value)
    name = key.split(maxsplit=1)[0]
    (said,) = validate_same_run(changed, checkpoint, [name])
    assert said.startswith(f"{name}: ")


def test_all_other_changes_are_named_too(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"^ema.decay .* \(also changed: optimizer.lr, seed\)"):
        validate_same_run(config(seed=5, optimizer={"lr": 1e-4}, ema={"decay": 0.9}), checkpoint, [])


def test_an_allowed_change_that_is_none_is_a_mistake(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"--allow-change optimizer\.lr: it is what the checkpoint was made with"):
        validate_same_run(config(), checkpoint, ["optimizer.lr"])


@pytest.mark.parametrize("content", [None, "- 1", "a: [", b"\xff"])
def test_a_checkpoint_without_a_readable_config_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config\.yaml: ") as rejected:
        validate_same_run(config(), tmp_path, [])
    assert "\n" not in str(rejected.value)


def test_the_free_keys_are_keys_of_a_config() -> None:
    known = config().model_dump()
    for key in (*FREE, *BY_THE_CHECKPOINT):
        section, _, name = key.partition(".")
        assert section in known
        assert not name or name in known[section]


def rows(*tokens: list[int]) -> TokenTable:
    return TokenTable.from_rows([([1, 2], row) for row in tokens])


def test_other_rows_are_other_data_also_where_only_the_border_moved(tmp_path: Path) -> None:
    tables = [rows([3, 4], [5]), rows([3, 4], [6]), rows([3], [4, 5]), rows([5], [3, 4]), rows([3, 4])]
    prints = [fingerprint(table) for table in tables]
    assert len(set(prints)) == len(prints)
    assert fingerprint(rows([3, 4], [5])) == prints[0]
    validate_same_data(prints[0], prints[0], tmp_path, "elsewhere", [])
    validate_same_data(prints[0], prints[1], tmp_path, "d", ["data.path"])
    with pytest.raises(UserError, match=r"data.path d: its rows are not those that .* was trained on"):
        validate_same_data(prints[0], prints[1], tmp_path, "d", [])


def test_recorded_batches_have_a_fingerprint_of_their_own() -> None:
    empty = TokenTable.empty()
    recordings = [[[generated(0)], [generated(1)]], [[generated(0), generated(1)]], [[generated(0)]]]
    assert len({fingerprint(empty, batches) for batches in recordings}) == 3
    assert np.array_equal(generated(0).chosen, generated(1).chosen)
