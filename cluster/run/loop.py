"""One run from start to end: the loop reads as the algorithm, everything else is a part that it calls."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from cluster.data.table import load_table, load_tokenizer
from cluster.reports.bottleneck import Shares, verdict
from cluster.reports.hints import Hints
from cluster.reports.pair_quality import readable
from cluster.reports.trackers import MetricsWriter
from cluster.sources.base import BatchSource, GivenRows, RecordedPairs
from cluster.sources.rollouts import WrittenPairs, start_writing
from cluster.storage.recording import PairRecorder, read_batches
from cluster.storage.run_folder import RunFolder
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.ray_session import Hardware, needed_cpus, ray_cluster
from contracts.errors import UserError
from contracts.pair import PreferencePair


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its models."""

    folder: Path
    policy: Path
    ema: Path
    steps: int
    verdict: str


@dataclass(frozen=True)
class Inputs:
    """What a run learns from: rows, or the batches of a recording (method ``replay``)."""

    tokenizer: PreTrainedTokenizerBase
    report: str
    table: TokenTable
    batches: list[list[PreferencePair]] = field(default_factory=list)


@dataclass
class Run:
    """The parts of a run, as the loop uses them."""

    config: RunConfig
    folder: RunFolder
    inputs: Inputs
    group: LearnerGroup
    source: BatchSource
    writer: MetricsWriter
    total_steps: int
    first_step: int
    busy_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    starting: Shares | None = None
    """Up to the first step's end: engines start and kernels are compiled, which is nobody's balance."""


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Run ``config`` to its last step; returns where policy and average were exported.

    Raises:
        UserError: config, data, model, checkpoint or cluster can't be used; one line says which and why.
    """
    inputs = read_inputs(config)
    total_steps = count_steps(config, inputs)
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    checkpoint = folder.newest_checkpoint() if resume else None
    first_step = _resumed_at(folder, checkpoint, total_steps) if resume else 0
    with ExitStack() as stack:
        hardware = stack.enter_context(ray_cluster(config.cluster, needed_cpus(config)))
        writer = MetricsWriter(folder, config.name, total_steps, first_step, tensorboard=config.logging.tensorboard)
        stack.callback(writer.close)
        writer.say(f"{config.name}: {inputs.report}")
        writer.say(f"{config.name}: {hardware}; {total_steps} steps of {config.learner.batch_size}; {folder.path}")
        if (cores := needed_cpus(config)) > hardware.cpus:
            writer.say(f"{config.name}: reserves {cores:g} CPUs of {hardware.cpus:g}; waits for nodes to join")
        group = LearnerGroup.start(config, hardware, total_steps)
        stack.callback(group.shutdown)
        source = _start_source(config, hardware, inputs, group, writer, stack)
        if note := group.setup():
            writer.say(f"{config.name}: {note}")
        if checkpoint:
            group.load(checkpoint / "learner")
            source.restore(checkpoint)
        source.begin(first_step, total_steps)
        return _loop(Run(config, folder, inputs, group, source, writer, total_steps, first_step))


def read_inputs(config: RunConfig) -> Inputs:
    """Raises:
    UserError: data or tokenizer can't be used.
    """
    if config.method == "replay":
        batches = read_batches(config.data.path)
        report = f"{config.data.path}: {len(batches)} recorded batches, {sum(map(len, batches))} pairs"
        return Inputs(load_tokenizer(config.model, config.data.chat_template), report, TokenTable.empty(), batches)
    table, tokenizer, report = load_table(config.data, config.model, config.method)
    return Inputs(tokenizer, str(report), table)


def count_steps(config: RunConfig, inputs: Inputs) -> int:
    """Optimizer steps of the run: given, or ``epochs`` passes over the data, or all that was recorded.

    Raises:
        UserError: more than was recorded.
    """
    steps, recorded, rows = config.learner.steps, len(inputs.batches), len(inputs.table)
    if config.method == "replay":
        if steps and steps > recorded:
            raise UserError(f"learner.steps {steps}: {config.data.path} holds {recorded} batches; at most that")
        return steps or recorded
    if steps:
        return steps
    if config.method == "sapo":
        return ceil(config.learner.epochs * rows * config.generation.responses_per_prompt / config.inserts_per_step)
    return ceil(config.learner.epochs * rows / config.learner.batch_size)


def _loop(run: Run) -> RunResult:
    config, source = run.config, run.source
    hints = Hints(run.writer.say)
    with ExitStack() as stack:
        samples = run.folder.open_lines("samples.jsonl")
        stack.callback(samples.close)
        recorder = PairRecorder(run.folder.recording(run.first_step)) if config.logging.record_pairs else None
        if recorder:
            stack.callback(recorder.close)
        for step in range(run.first_step + 1, run.total_steps + 1):
            started = time.monotonic()
            batch = source.next(step - 1)
            stepping = time.monotonic()
            done = run.group.step(batch.pairs)
            step_s = time.monotonic() - stepping
            run.busy_s += step_s
            after = source.stepped(step, batch, done.scores)

            metrics: dict[str, Any] = {"step": step} | batch.metrics | done.metrics
            for name, value in after.items():
                metrics[name] = metrics.get(name, 0.0) + value if name.startswith("time/") else value
            idle_s = metrics.get("time/draw_wait_s", 0.0) + metrics.get("time/weights_wait_s", 0.0)
            metrics |= {"time/train_s": step_s, "time/learner_idle_s": idle_s}
            metrics["time/step_s"] = time.monotonic() - started
            run.writer.write(metrics)
            hints.see(metrics)

            if step == run.first_step + 1 != run.total_steps:
                run.starting = _shares(run)
            if recorder:
                recorder.write(step - 1, batch.pairs)
            if config.method != "sft" and _due(step, config.logging.samples_every):
                for pair in batch.pairs[: config.logging.samples]:
                    samples.write(readable(pair, run.inputs.tokenizer.decode, step))
            if config.method == "sapo" and _due(step, config.logging.verdict_every) and step != run.total_steps:
                run.writer.say(f"{config.name}: {_verdict(run)}")
            if _due(step, config.checkpoint.every) or step == run.total_steps:
                _save(run, step)
    closing = _verdict(run)
    run.writer.say(f"{config.name}: {closing}")
    final = run.folder.checkpoint(run.total_steps)
    return RunResult(run.folder.path, final / "policy", final / "ema", run.total_steps, closing)


def _start_source(
    config: RunConfig, hardware: Hardware, inputs: Inputs, group: LearnerGroup, writer: MetricsWriter, stack: ExitStack
) -> BatchSource:
    if config.method == "replay":
        return RecordedPairs(inputs.batches)
    if config.method != "sapo":
        return GivenRows(inputs.table, config)
    return start_writing(config, hardware, inputs.table, inputs.tokenizer.eos_token_id, group, writer.say, stack)


def _resumed_at(folder: RunFolder, checkpoint: Path | None, total_steps: int) -> int:
    """The checkpoint's step; what was logged after it is dropped, as it is written again."""
    if checkpoint is None:
        raise UserError(f"{folder.path}: --resume, but it holds no whole checkpoint")
    step = json.loads((checkpoint / "run.json").read_text())["step"]
    if step >= total_steps:
        raise UserError(f"{checkpoint}: the run is complete at step {step}; raise learner.steps to go on")
    for name in ("metrics.jsonl", "samples.jsonl"):
        folder.keep_lines_below(name, step)
    return step


def _save(run: Run, step: int) -> None:
    """Write a checkpoint aside and rename it when it is whole."""
    final = run.folder.checkpoint(step)
    aside = final.with_name(final.name + ".tmp")
    aside.mkdir(parents=True, exist_ok=True)
    run.group.save(aside / "learner")
    run.group.export(aside)
    for name in ("policy", "ema"):
        run.inputs.tokenizer.save_pretrained(aside / name)
    run.source.snapshot(aside)
    (aside / "config.yaml").write_text((run.folder.path / "config.yaml").read_text())
    (aside / "run.json").write_text(json.dumps({"step": step, "rows": len(run.inputs.table)}))
    aside.rename(final)
    run.folder.prune(run.config.checkpoint.keep)


def _verdict(run: Run) -> str:
    shares = _shares(run)
    return verdict(shares - run.starting if run.starting else shares, lockstep=run.config.weights.max_staleness == 0)


def _shares(run: Run) -> Shares:
    source, wall_s = run.source, time.monotonic() - run.started
    if not isinstance(source, WrittenPairs):
        return Shares(wall_s, run.busy_s)
    idle = source.actors_idle_s()
    return Shares(wall_s, run.busy_s, actors=len(idle), actor_wait_s=sum(idle) / max(len(idle), 1), **source.waited)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
