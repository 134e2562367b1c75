"""One attempt of a run: its parts are started in an order in which each is handed what it needs, used, shut down.

A learner rank, the coordinator or a shard that dies ends the attempt; the next one begins here again, from the newest
checkpoint, with what did not die and with the rest placed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ray

from actors.messages import Adapters
from buffer.client import ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.data.tokenizer import text_decoder, vocabulary_size
from cluster.reports.page.run_record import flatten
from cluster.reports.progress import ProgressLine
from cluster.reports.ray_metrics import RayMetrics
from cluster.reports.run_log import RunLog
from cluster.reports.services import open_services
from cluster.reports.trackers import JsonLinesTracker, RayMetricsTracker, TensorBoardTracker, Tracker, Trackers
from cluster.run.callbacks import (
    BottleneckReport,
    Callback,
    Callbacks,
    HintsReport,
    MetricsReport,
    Recording,
    SamplesReport,
)
from cluster.run.checkpointer import Checkpointed, Checkpointer
from cluster.run.evaluations import Evaluations
from cluster.run.held_out import HeldOut
from cluster.run.inputs import Inputs
from cluster.run.interventions import Interventions
from cluster.run.loop import Progress, run_steps
from cluster.run.losses import Losses
from cluster.run.machine import MachineWatch
from cluster.run.preemption import Preemption
from cluster.run.skips import SkippedBatches, Skips
from cluster.run.stopping import LastResort, StopRequest
from cluster.sources.base import BatchSource
from cluster.sources.fixed import fixed_source
from cluster.sources.rollouts import RolloutSource
from cluster.status.collector import About, Collector, Rollouts
from cluster.storage.recording import PairRecorder
from cluster.storage.run_folder import RunFolder
from cluster.weights.parity import ParityCheck, choose_sequences
from cluster.weights.publisher_spec import PublisherSpec
from cluster.workers.actor_factory import ActorFactory, backend_of
from cluster.workers.actor_pool import ActorPool
from cluster.workers.control import Mailbox
from cluster.workers.evaluator import EvaluatorFactory
from cluster.workers.failure_policy import FailurePolicy
from cluster.workers.inbox import Asked, Inbox
from cluster.workers.learner_group import LearnerGroup, Ranks, WeightSync
from cluster.workers.member import Member
from cluster.workers.ray_calls import NAMESPACE, RayCalls, WorkerFailure, failure_of
from cluster.workers.resources import Hardware, nodes_that_answer

TRIES = 4
"""Waits of weights.timeout_s that a publication may take: joining and transferring, and both once more."""


@dataclass(frozen=True)
class Setting:
    """What all attempts of a run have in common."""

    config: RunConfig
    folder: RunFolder
    inputs: Inputs
    total_steps: int
    hardware: Hardware
    log: RunLog
    policy: FailurePolicy
    metrics: RayMetrics
    """On Ray's metrics port."""
    losses: Losses
    mailbox: Mailbox
    last_resort: LastResort
    adapters: Adapters | None = None
    """What is published to the actors, where it is not whole weights."""
    survivors: list[Member] = field(default_factory=list)
    """Actors of an attempt that failed; the next one takes them over."""
    ranks: list[Ranks] = field(default_factory=list)
    """Its ranks, where another part failed; one at most."""
    asked: Asked = field(default_factory=Asked)
    """What was asked through the run's mailbox and is not done yet."""

    @property
    def label(self) -> str:
        """Names of processes begin with it: the run's name, and in later attempts their number. A killed process keeps
        its name for a moment."""
        number = self.policy.restarted + 1
        return self.config.name if number == 1 else f"{self.config.name}-attempt-{number}"


def run_attempt(setting: Setting, checkpoint: Path | None, progress: Progress) -> str:
    """Run from ``checkpoint``, or from the start, to the last step; returns the closing bottleneck report.

    ``progress`` says at every moment how many steps are done.

    Raises:
        UserError: model, checkpoint or cluster can't be used; one line says which and why.
        WorkerFailure: a rank or a part of the buffer died.
        Stopped: the run was asked to end and has saved.
        Interrupted: it was asked to end at once.
    """
    with ExitStack() as beside, ExitStack() as parts:
        config, inputs, log = setting.config, setting.inputs, setting.log.logger
        activity = setting.log.activity
        inbox = Inbox(setting.mailbox, RayCalls(), setting.asked)
        stop = StopRequest(log, config.checkpoint.grace_s, setting.last_resort)
        interventions = Interventions(stop, inbox, Skips(config.learner.skipped_steps), Preemption(log))
        collector = _collector(setting, progress.step)
        parts.callback(collector.close)
        collector.start()
        with activity.phase("placing ranks, buffer and actors"):
            if not checkpoint:  # the starting weights are gone
                end_ranks(setting)
            group, source = start_parts(setting, parts, inbox, collector, lambda: interventions.ending)
        with activity.phase("making room on shared GPUs"):
            source.prepare()
        if note := group.setup(activity.phase):
            log.info(note)
        if checkpoint:
            with activity.phase(f"loading {checkpoint.name}"):
                group.load(checkpoint)
                source.restore(checkpoint)
        with activity.phase("engines load and take their first weights"):
            source.begin(progress.step, setting.total_steps)
        closing = BottleneckReport(
            source,
            log,
            lockstep=config.weights.max_staleness == 0,
            every=config.logging.verdict_every,
            machine=MachineWatch(config, setting.hardware),
        )
        evaluations = _evaluations(setting, beside)
        reports = _reports(setting, source, progress.step, parts)
        callbacks = Callbacks([*reports, evaluations, collector, closing, setting.losses], log)
        checkpointer = Checkpointer(
            config.checkpoint,
            setting.folder,
            group,
            source,
            Checkpointed(inputs.tokenizer, inputs.fingerprint, setting.total_steps),
            callbacks.on_checkpoint,
            config.recovery.stall_s,
            log,
            config.evaluation.every,
        )
        parts.callback(checkpointer.close)
        held_out = HeldOut(inputs.held_out, config.data, group, setting.total_steps)
        with stop.heeded():
            run_steps(
                group,
                source,
                checkpointer,
                callbacks,
                held_out,
                evaluations,
                progress,
                setting.total_steps,
                interventions,
                activity,
            )
        parts.close()  # learner and actors do not wait for the last evaluation
        evaluations.finish()
        return closing.closing


def _evaluations(setting: Setting, beside: ExitStack) -> Evaluations:
    """They end with ``beside``, after learner and actors."""
    config = setting.config
    evaluations = Evaluations(
        config.evaluation,
        setting.folder,
        setting.folder.open_lines("evaluations.jsonl"),
        EvaluatorFactory(config, setting.hardware, setting.label),
        RayCalls(),
        setting.total_steps,
        setting.log.logger,
    )
    beside.callback(evaluations.close)
    return evaluations


def _collector(setting: Setting, first_step: int) -> Collector:
    """What tells ``sapo status`` of the attempt."""
    config = setting.config
    about = About(
        config.name,
        str(setting.folder.path),
        config.method,
        setting.total_steps,
        first_step,
        setting.policy.restarted + 1,
        lockstep=config.weights.max_staleness == 0,
    )
    return Collector(
        about,
        setting.log,
        RayCalls(),
        lambda board: setting.mailbox.worker.tell("post", board),
        MachineWatch(config, setting.hardware),
        text_decoder(setting.inputs.tokenizer),
        setting.metrics,
    )


def start_parts(
    setting: Setting, parts: ExitStack, inbox: Inbox, collector: Collector, ending: Callable[[], bool]
) -> tuple[LearnerGroup, BatchSource]:
    """Start learner and source; they are shut down with ``parts``. The one place that asks for the method."""
    config, inputs = setting.config, setting.inputs
    if config.method == "sapo":
        return _start_rollouts(setting, parts, inbox, collector, ending)
    ends = inputs.ends.ids
    vocabulary = vocabulary_size(inputs.tokenizer) if config.model.add_tokens else 0
    ranks = Ranks.start(config, setting.hardware, setting.total_steps, setting.label, ends=ends, vocabulary=vocabulary)
    parts.callback(ranks.shutdown)
    group = LearnerGroup(ranks, RayCalls(), config.recovery.stall_s, setting.log.logger)
    return group, fixed_source(config, inputs.table, inputs.batches)


def _start_rollouts(
    setting: Setting, parts: ExitStack, inbox: Inbox, collector: Collector, ending: Callable[[], bool]
) -> tuple[LearnerGroup, BatchSource]:
    """Ranks, buffer and actors. Engines load while the learner does, and actors are looked after while it steps."""
    config, hardware, table = setting.config, setting.hardware, setting.inputs.table
    ending = (lambda: False) if config.cluster.colocate else ending  # only a learner that has its GPUs can save
    ends = setting.inputs.ends.ids
    slack = config.weights.max_staleness
    buffer = ReplayBuffer.start(
        config.buffer,
        seed=config.seed,
        batch_size=config.learner.batch_size,
        inserts_per_step=config.inserts_per_step,
        ordered=slack == 0,
        ahead=slack,
        behind=slack,
        label=setting.label,
        namespace=NAMESPACE,
    )
    parts.callback(buffer.shutdown)
    backend = backend_of(config, hardware)
    publisher = PublisherSpec(backend, config.weights.timeout_s, config.generation.tensor_parallel, overlap=slack > 0)
    if not (ranks := _kept_ranks(setting)):
        ranks = Ranks.start(config, hardware, setting.total_steps, setting.label, publisher, ends=ends)
    parts.push(partial(_keep_ranks, setting, ranks))
    beside = ranks.placement if config.cluster.colocate else None
    factory = ActorFactory.of(config, hardware, table, ends, buffer, setting.label, beside, setting.adapters)
    pool = ActorPool(
        factory,
        buffer,
        setting.policy,
        setting.log.logger,
        config.cluster.start_timeout_s,
        stall_s=config.recovery.stall_s,
        sync=WeightSync(ranks),
        inbox=inbox,
        fixed=config.cluster.colocate,
        fewer_after_s=config.recovery.fewer_after_s,
        send_limit_s=config.recovery.stall_s + TRIES * config.weights.timeout_s,
    )
    parts.callback(pool.shutdown)
    pool.adopt(setting.survivors)
    pool.add(config.generation.actors - len(setting.survivors))
    setting.survivors.clear()
    collector.watch(Rollouts(pool.all_members, buffer.stats_ref))
    parts.push(partial(_keep_engines, setting, pool))
    group = LearnerGroup(ranks, pool, config.recovery.stall_s, setting.log.logger)
    # One token is left for vLLM, which samples one with every score.
    sequences = choose_sequences(table, config.data.max_length - 1)
    parity = ParityCheck(config.weights, config.model.dtype, sequences, group, pool, setting.log.logger, ending)
    return group, RolloutSource(config, len(table), buffer, pool, group, parity, setting.log.activity, ending)


def _keep_ranks(setting: Setting, ranks: Ranks, _: object, failure: BaseException | None, __: object) -> None:
    """On the way out: ranks end, unless another part died. Then they serve the next attempt, which is spared the start
    of their processes. Where something raised, as after steps without a finite gradient, new ones are safer."""
    found = failure_of(failure) if isinstance(failure, ray.exceptions.RayError) else failure
    died = isinstance(found, WorkerFailure) and found.died
    setting.ranks.append(ranks)  # first: who interrupts the wait ends them too
    if not died or setting.config.cluster.colocate or not ranks.settle(RayCalls()):
        end_ranks(setting)


def _kept_ranks(setting: Setting) -> Ranks | None:
    """Those of the attempt before, where they still fit: on other nodes than at the start everything is placed anew."""
    if not setting.ranks:
        return None
    (ranks,) = setting.ranks
    as_many = len(ranks.workers) == setting.config.learner.ranks
    if as_many and len(nodes_that_answer()) == setting.hardware.nodes and ranks.settle(RayCalls()):
        return setting.ranks.pop()
    end_ranks(setting)
    return None


def end_ranks(setting: Setting) -> None:
    """Those that no attempt takes over."""
    while setting.ranks:
        setting.ranks.pop().shutdown()


def _keep_engines(setting: Setting, pool: ActorPool, _: object, failure: BaseException | None, __: object) -> None:
    """On the way out of an attempt that failed: its engines serve the next one. One that shares its GPU with a rank is
    started anew with it."""
    failed = isinstance(failure, (WorkerFailure, ray.exceptions.RayError))
    if failed and not setting.config.cluster.colocate:
        setting.survivors.extend(pool.surrender())


def _reports(setting: Setting, source: BatchSource, first_step: int, parts: ExitStack) -> list[Callback]:
    """What is written and shown of every step, in the order in which it happens; closed with ``parts``."""
    config, folder, log = setting.config, setting.folder, setting.log
    trackers: list[Tracker] = [JsonLinesTracker(folder.open_lines("metrics.jsonl")), RayMetricsTracker(setting.metrics)]
    if config.logging.tensorboard:
        trackers.append(TensorBoardTracker(folder.path / "tensorboard", first_step))
    fan_out = Trackers(trackers, log.logger)
    for name, opening in open_services(
        config.logging, config.name, folder.path, flatten(config.model_dump(mode="json"))
    ):
        fan_out.open(name, opening)
    parts.callback(fan_out.close)
    progress = ProgressLine(log.console, log.logger, config.name, setting.total_steps, first_step)
    parts.callback(progress.close)
    samples = folder.open_lines("samples.jsonl")
    parts.callback(samples.close)
    skipped = folder.open_lines("skipped.jsonl")
    parts.callback(skipped.close)
    decode = text_decoder(setting.inputs.tokenizer)
    reports: list[Callback] = [
        MetricsReport(fan_out, progress),
        SkippedBatches(skipped, decode, log.logger),
        HintsReport(log.logger),
        SamplesReport(samples, source, decode, config.logging),
    ]
    if config.logging.record_pairs:
        recorder = PairRecorder(folder.recording, first_step)
        parts.callback(recorder.close)
        reports.append(Recording(recorder))
    return reports
