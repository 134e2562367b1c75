"""One run from start to end: the loop reads as the algorithm, everything else is a part that it calls."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from transformers import PreTrainedTokenizerBase

from actors.plan import Plan
from actors.tokens import TokenTable
from buffer.client import ReplayBuffer
from buffer.errors import UserError
from cluster.batches import BatchSource, GivenRows
from cluster.config import RunConfig
from cluster.control import open_control
from cluster.data import load_table
from cluster.fleet import Fleet, State
from cluster.folder import RunFolder
from cluster.group import LearnerGroup
from cluster.hints import Hints
from cluster.launch import Hardware, needed_cpus, ray_cluster
from cluster.metrics import MetricsWriter
from cluster.placement import spawn_actor
from cluster.quality import readable
from cluster.transfer.publisher import Publisher, choose_backend
from cluster.verdict import Shares, verdict
from cluster.written import WrittenPairs


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its models."""

    folder: Path
    policy: Path
    ema: Path
    steps: int
    verdict: str


@dataclass
class Run:
    """The parts of a run, as the loop uses them."""

    config: RunConfig
    folder: RunFolder
    hardware: Hardware
    table: TokenTable
    tokenizer: PreTrainedTokenizerBase
    group: LearnerGroup
    source: BatchSource
    writer: MetricsWriter
    total_steps: int
    first_step: int = 0
    buffer: ReplayBuffer | None = None
    fleet: Fleet | None = None
    busy_s: float = 0.0
    started: float = field(default_factory=time.monotonic)


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Run ``config`` to its last step; returns where policy and average were exported.

    Raises:
        UserError: config, data, model, checkpoint or cluster can't be used; one line says which and why.
    """
    table, tokenizer, report = load_table(config.data, config.model, config.method)
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    checkpoint = folder.newest_checkpoint() if resume else None
    if resume and checkpoint is None:
        raise UserError(f"{folder.path}: --resume, but it holds no whole checkpoint")
    total_steps = count_steps(config, len(table))
    with ExitStack() as stack:
        hardware = stack.enter_context(ray_cluster(config.cluster, needed_cpus(config)))
        group = LearnerGroup.start(config, hardware, total_steps)
        stack.callback(group.shutdown)
        run = _assemble(config, folder, hardware, table, tokenizer, group, total_steps, checkpoint, stack)
        run.writer.say(f"{config.name}: {report}")
        run.writer.say(f"{config.name}: {hardware}; {total_steps} steps of {config.learner.batch_size}")
        return _loop(run)


def count_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of the run: given, or ``epochs`` passes over the data."""
    if config.learner.steps:
        return config.learner.steps
    if config.method == "sapo":
        indices = config.learner.epochs * rows * config.generation.responses_per_prompt
        return ceil(indices / config.inserts_per_step)
    return ceil(config.learner.epochs * rows / config.learner.batch_size)


def _loop(run: Run) -> RunResult:
    config, source = run.config, run.source
    samples = run.folder.open_lines("samples.jsonl")
    hints = Hints(run.writer.say)
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
        metrics["time/train_s"] = step_s
        metrics["time/step_s"] = time.monotonic() - started
        metrics["time/learner_idle_s"] = metrics.get("time/draw_wait_s", 0.0) + metrics.get("time/weights_wait_s", 0.0)
        run.writer.write(metrics)
        hints.see(metrics)

        if config.method != "sft" and _due(step, config.logging.samples_every):
            for pair in batch.pairs[: config.logging.samples]:
                samples.write(readable(pair, run.tokenizer.decode, step))
        if run.fleet and _due(step, config.logging.verdict_every):
            run.writer.say(f"{config.name}: {_verdict(run)}")
        if _due(step, config.checkpoint.every) or step == run.total_steps:
            _save(run, step)
    samples.close()
    closing = _verdict(run)
    run.writer.say(f"{config.name}: {closing}")
    final = run.folder.checkpoint(run.total_steps)
    return RunResult(run.folder.path, final / "policy", final / "ema", run.total_steps, closing)


def _assemble(
    config: RunConfig, folder: RunFolder, hardware: Hardware, table: TokenTable, tokenizer: PreTrainedTokenizerBase,
    group: LearnerGroup, total_steps: int, checkpoint: Path | None, stack: ExitStack,
) -> Run:  # fmt: skip
    first_step = 0
    if checkpoint:
        first_step = json.loads((checkpoint / "run.json").read_text())["step"]
        if first_step >= total_steps:
            raise UserError(f"{checkpoint}: the run is complete at step {first_step}; raise learner.steps to go on")
        group.load(checkpoint / "learner")
        for name in ("metrics.jsonl", "samples.jsonl"):
            folder.keep_lines_below(name, first_step)
    writer = MetricsWriter(folder, config.name, total_steps, first_step, tensorboard=config.logging.tensorboard)
    stack.callback(writer.close)
    parts = (config, folder, hardware, table, tokenizer, group)
    if config.method != "sapo":
        return Run(*parts, GivenRows(table, config), writer, total_steps, first_step)

    buffer = start_buffer(config)
    stack.callback(buffer.shutdown)
    if checkpoint:
        buffer.restore(checkpoint / "buffer")
    fleet = _start_fleet(config, hardware, table, tokenizer, buffer, group, writer)
    stack.callback(fleet.shutdown)
    source = WrittenPairs(config, table, buffer, fleet, group, total_steps)
    source.begin(first_step)
    return Run(*parts, source, writer, total_steps, first_step, buffer, fleet)


def start_buffer(config: RunConfig) -> ReplayBuffer:
    """The replay buffer: in lockstep ordered and without slack, else as far ahead as the bound allows."""
    slack = config.weights.max_staleness
    return ReplayBuffer.start(
        config.buffer, seed=config.seed, batch_size=config.learner.batch_size,
        inserts_per_step=config.inserts_per_step, ordered=slack == 0, ahead=slack, behind=slack,
    )  # fmt: skip


def _start_fleet(
    config: RunConfig, hardware: Hardware, table: TokenTable, tokenizer: PreTrainedTokenizerBase,
    buffer: ReplayBuffer, group: LearnerGroup, writer: MetricsWriter,
) -> Fleet:  # fmt: skip
    backend = choose_backend(config.weights.backend, hardware.use_gpu, hardware.nodes)
    workers = config.generation.tensor_parallel
    group.attach(Publisher(backend, timeout_s=config.weights.timeout_s, workers_per_engine=workers))
    plan = Plan(
        config.seed, table.response_lengths, config.generation.segment_length, config.generation.responses_per_prompt
    )
    work = ray.put((plan, table))

    def spawn(name: str) -> ActorHandle:
        return spawn_actor(name, config, hardware, backend, work, tokenizer.eos_token_id, buffer)

    fleet = Fleet(spawn, buffer, writer.say, group.retarget, group.send, open_control(config.name))
    fleet.add(config.generation.actors)
    return fleet


def _save(run: Run, step: int) -> None:
    """Write a checkpoint aside and rename it when it is whole."""
    final = run.folder.checkpoint(step)
    aside = final.with_name(final.name + ".tmp")
    aside.mkdir(parents=True, exist_ok=True)
    run.group.save(aside / "learner")
    run.group.export(aside)
    for name in ("policy", "ema"):
        run.tokenizer.save_pretrained(aside / name)
    if run.buffer:
        run.buffer.snapshot(aside / "buffer")
    (aside / "config.yaml").write_text((run.folder.path / "config.yaml").read_text())
    (aside / "run.json").write_text(json.dumps({"step": step, "rows": len(run.table)}))
    aside.rename(final)
    run.folder.prune(run.config.checkpoint.keep)


def _verdict(run: Run) -> str:
    waited = run.source.waited if isinstance(run.source, WrittenPairs) else {}
    actors = len([m for m in run.fleet.members.values() if m.state is State.RUNNING]) if run.fleet else 0
    blocked = run.buffer.stats().blocked_lease_s if run.buffer else 0.0
    shares = Shares(
        wall_s=time.monotonic() - run.started, learner_busy_s=run.busy_s,
        draw_wait_s=waited.get("draw_wait_s", 0.0), weights_wait_s=waited.get("weights_wait_s", 0.0),
        publish_s=waited.get("publish_s", 0.0), actor_wait_s=blocked / max(actors, 1), actors=actors,
    )  # fmt: skip
    return verdict(shares, lockstep=run.config.weights.max_staleness == 0)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
