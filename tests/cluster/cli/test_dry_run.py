"""``--dry-run`` of every verb: one short summary, or the same line that the verb itself would end with; nothing is
started and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffer.index import IndexState
from buffer.leases import LedgerState
from buffer.messages import CoordinatorState, Drawing
from buffer.rate_limiter import LimiterState
from buffer.slot_layout import SlotLayout
from buffer.snapshot import shard_file, write_payloads, write_state
from cluster.config.loading import load_config
from cluster.config.paths import resolve_paths
from cluster.config.run_config import RunConfig
from cluster.run.inputs import read_inputs
from cluster.storage.checkpoints import write_manifest
from cluster.storage.recording import PairRecorder
from cluster.storage.run_folder import as_yaml
from contracts.pair import offline_pair
from learner.zero.checkpoint import FORMAT
from support.command_line import Said, Sapo

Tree = dict[str, bytes]
SFT = ("method=sft", "objective.name=sft", "reference.mode=none")


def tree(folder: Path) -> Tree:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def dry(sapo: Sapo, run_file: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a verb with ``--dry-run``; checks that it starts and writes nothing."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", started)
    monkeypatch.setattr("subprocess.Popen", started)

    def run(verb: str, *arguments: object) -> Said:
        before = tree(tmp_path)
        said = sapo(verb, run_file, *arguments, "--dry-run")
        assert tree(tmp_path) == before
        return said

    yield run


def lines(said: Said) -> list[str]:
    assert said.status == 0, said.err
    assert said.err == ""
    return said.out.splitlines()


def test_train_says_in_a_few_lines_what_it_would_do(dry: Any, tmp_path: Path) -> None:
    said = lines(dry("train", "learner.steps=5"))
    assert said[0] == "method sapo, objective dpo: 5 steps of 4; starts"
    assert said[1] == f"model {tmp_path / 'model'}, bfloat16"
    assert said[2].endswith(" rows used")
    assert "of a dataset the first 1000 rows at most were read" in said
    assert any(line.startswith("a response ends at </s> (tokenizer") for line in said)
    assert said[-2].startswith("needs 1 rank with 1 CPU and 1 actor with 1 CPU; this machine has ")
    assert said[-1] == f"would write {tmp_path / 'runs' / 'r'}"
    assert lines(dry("train"))[0] == "method sapo, objective dpo: 4 epochs of 4; starts"


def test_sft_and_offline_and_replay_have_one_too(dry: Any, tmp_path: Path) -> None:
    assert lines(dry("sft", "learner.steps=0"))[0] == "method sft, objective sft: 0 steps of 4; starts"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "write ", "chosen": "1 2", "rejected": "3"}) + "\n")
    said = lines(dry("train", "method=offline", f"data.path={pairs}", "data.max_rows=1", "learner.epochs=3"))
    assert said[0] == "method offline, objective dpo: 1 steps of 4; starts"
    assert "actor" not in said[-2]
    recording = tmp_path / "recorded.arrow"
    recorder = PairRecorder(recording)
    ids = [np.array(ids, np.int32) for ids in ([1, 4, 6], [17, 2], [18, 2])]
    for step in range(3):
        recorder.write(step, [offline_pair(0, *ids)])
    recorder.close()
    said = lines(dry("train", "method=replay", f"data.path={recording}"))
    assert said[0] == "method replay, objective dpo: 3 steps of 4; starts"
    assert said[2] == f"{recording}: 3 recorded batches, 3 pairs"
    assert "at most that" in dry("train", "method=replay", f"data.path={recording}", "learner.steps=4").rejection
    recording.write_bytes(b"PAR1")
    assert "can't be read as a recording" in dry("train", "method=replay", f"data.path={recording}").rejection
    # Recorded with another tokenizer.
    recorder = PairRecorder(recording)
    recorder.write(0, [offline_pair(0, ids[0], np.array([900, 2], np.int32), ids[2])])
    recorder.close()
    assert "the data have token 900" in dry("train", "method=replay", f"data.path={recording}").rejection


def test_generate_has_one_too(dry: Any, tmp_path: Path) -> None:
    said = lines(dry("generate", "--batches", "3", "--out", tmp_path / "p.parquet"))
    assert said[0] == f"generates 3 batches of 4 pairs with {tmp_path / 'model'}"
    assert said[-1] == f"would write {tmp_path / 'p.parquet'}"
    assert "rank" not in said[-2]
    assert dry("generate", *SFT).rejection == "method sft: only method sapo generates pairs"
    away = tmp_path / "none" / "p.parquet"
    assert dry("generate", "--out", away).rejection == f"--out {away}: {away.parent} is no folder"


def test_eval_has_one_too(sapo: Sapo, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "write 3 numbers"}\n')
    arguments = ("--prompts", prompts, "--check", "demo.task:check", "--dry-run")
    said = sapo("eval", weights, weights, *arguments)
    assert (
        said.out.splitlines()
        == [
            f"model {weights}: 1 prompts of 3 to 3 tokens, each answered greedily and 4 times sampled by up to 61 "
            "tokens; scored by demo.task:check"
        ]
        * 2
    )
    assert sapo("eval", tmp_path / "none", *arguments).rejection == f"model {tmp_path / 'none'}: no such folder"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("learner.step=3",), "did you mean learner.steps?"),
        (("model.path=/none/such",), "model.path /none/such: no such folder"),
        (("model.path=some-owner/no-such-model",), "model.path some-owner/no-such-model: no model is there: "),
        (("model.tokenizer=/none/such",), "model.tokenizer /none/such: no such folder"),
        (("data.path=/none/such",), "data.path /none/such: no such file or folder"),
        (("data.messages_column=nothing",), "no column 'nothing'"),
        (("data.max_length=100", "learner.tokens_per_batch=256"), "max_position_embeddings 64; at most that"),
        (("objective.name=nothing:here",), "No module named 'nothing'"),
        (("data.chat_template=/none/such",), "data.chat_template /none/such: can't be read"),
        (("--resume",), "holds no whole checkpoint"),
        (("--resume", "--overwrite"), "exclude each other"),
        (("learner.ranks=3", "learner.batch_size=4"), "must be a multiple of learner.ranks 3"),
        (("cluster.learner_resources={h100: 1}",), "no node has that"),
        (("model.lora.target_modules=[nothing]",), "model.lora.target_modules"),
    ],
)
def test_what_would_end_a_run_later_ends_its_dry_run(dry: Any, arguments: tuple[str, ...], words: str) -> None:
    assert words in dry("train", *arguments).rejection


def test_a_file_in_place_of_the_output_folder_is_named(dry: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert dry("train", f"output_dir={file}").rejection == f"output_dir {file}: {file} is no folder"


# ---- the run folder -------------------------------------------------------------------------------------------------


def checkpoint(config: RunConfig, *, step: int, total: int) -> Path:
    """A checkpoint as far as a dry run looks."""
    at = config.run_dir / "checkpoints" / f"step-{step}"
    (at / "learner").mkdir(parents=True)
    (at / "buffer").mkdir()
    (at / "config.yaml").write_text(as_yaml(config))
    layout = {"ranks": 1, "zero_stage": 2, "optimizer": "adamw", "pieces": []}
    (at / "learner" / "rank-0.json").write_text(json.dumps({"format": FORMAT, "layout": layout}))
    capacity = config.buffer.capacity
    numbers = np.zeros(capacity, np.int64)
    index = IndexState(0, 0, numbers, numbers, numbers, np.zeros(capacity, bool))
    limiter = LimiterState(**dict.fromkeys(LimiterState.__dataclass_fields__, 0))
    state = CoordinatorState(index, LedgerState(0, []), limiter, [], 0, {}, Drawing(), 0, 0, SlotLayout.of(capacity, 1))
    write_state(at / "buffer", state)
    write_payloads(shard_file(at / "buffer", 0), {})
    write_manifest(at, step, read_inputs(config).fingerprint, total)
    return at


def test_a_resumed_run_is_checked_against_its_checkpoint(dry: Any, run_file: Path) -> None:
    config = resolve_paths(load_config(run_file))
    run, other = config.run_dir, run_file.with_name("other.jsonl")
    other.write_text(Path(str(config.data.path)).read_text().replace("1 2 9", "1 2 8"))
    at = checkpoint(config, step=3, total=5)
    assert "holds a run already" in dry("train").rejection
    assert lines(dry("train", "--overwrite", "learner.steps=5"))[0].endswith("; starts")
    said = lines(dry("train", "--resume", "learner.steps=5"))
    assert said[0] == f"method sapo, objective dpo: 5 steps of 4; goes on at step 3 of {at}"
    assert not any("learning rate" in line for line in said)
    said = lines(dry("train", "--resume", "learner.steps=50", "learner.tokens_per_batch=9999"))
    assert "this run has 50 steps, and had 5 when its checkpoint was written" in "\n".join(said)
    assert any(line.startswith("resumed with learner.tokens_per_batch: ") for line in said)
    for arguments, words in (
        (("learner.steps=3",), "the run is complete at step 3; raise learner.steps"),
        (("learner.steps=2",), f"learner.steps 2: {at} is further; raise it to go on"),
        (("learner.steps=3", "seed=5"), f"seed 5: {at} was made with"),
        (("learner.steps=3", "--allow-change", "nonsense.key"), "--allow-change nonsense.key: "),
        (("optimizer.lr=0.5",), f"optimizer.lr 0.5: {at} was made with"),
        (("--allow-change", "optimizer.name", "optimizer.name=rmsprop"), "saved with optimizer.name adamw; this run"),
        ((f"data.path={other}",), f"data.path {other}: its rows are not those that {at} was trained on"),
        (("buffer.capacity=64",), f"buffer.capacity 64: the snapshot in {at / 'buffer'} was taken at"),
    ):
        assert words in dry("train", "--resume", "learner.steps=5", *arguments).rejection
    assert lines(dry("train", "--resume", "learner.steps=5", "optimizer.lr=0.5", "--allow-change", "optimizer.lr"))
    (run / "metrics.jsonl").write_text("{broken\n")
    assert "metrics.jsonl" in dry("train", "--resume", "learner.steps=5").rejection
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n')
    text = "\n".join(lines(dry("train", "--resume", "learner.steps=5")))
    assert "metrics.jsonl lacks 1 of the 3 steps that are done, step 2 is the first; they are not made again" in text
    (run / "metrics.jsonl").unlink()
    again = dry("train", "recovery.auto_resume=true", "learner.steps=3")
    assert lines(again) == [f"complete at step 3 already; {run}"]
    (at / "buffer" / "shard-0000.bin").unlink()
    assert "shard-0000.bin: can't be read: No such file" in dry("train", "--resume", "learner.steps=5").rejection


def test_a_table_of_short_responses_is_said_to_be_rewritten_whole(dry: Any) -> None:
    said = "\n".join(lines(dry("train", "generation.segment_length=20", "learner.steps=1")))
    assert (
        "generation.segment_length 20: 1 of 1 responses have under 23 tokens, so that they are rewritten whole; "
        "the median has 4"
    ) in said
    said = "\n".join(lines(dry("train", "generation.segment_length=null", "learner.steps=1")))
    assert "rewritten whole" not in said
