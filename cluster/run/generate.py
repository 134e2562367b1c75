"""Generation alone: actors make pairs with the starting model, and a file keeps them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from buffer.client import ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.reports.run_log import RunLog
from cluster.run.checks import check_generation
from cluster.storage.recording import PairRecorder
from cluster.workers.actor_factory import ActorFactory
from cluster.workers.actor_pool import ActorPool
from cluster.workers.failure_policy import FailurePolicy, Limits
from cluster.workers.node_paths import validate_nodes
from cluster.workers.ray_calls import wait_for
from cluster.workers.ray_session import ray_session
from cluster.workers.resources import needed_cpus, require_room

AHEAD_STEPS = 8
"""Batches that are generated ahead of the one being written to the file."""


def generate(config: RunConfig, out: Path, batches: int) -> int:
    """Record ``batches`` batches of ``learner.batch_size`` pairs, each pair once; returns the pairs written.

    The weights are those of ``model.path`` throughout. Method ``replay`` trains on the file.

    Raises:
        UserError: the config is not of method sapo, or data, model or cluster can't be used.
    """
    config, inputs, notes = check_generation(config, out)
    with ExitStack() as stack:
        recorder = PairRecorder(out)
        stack.callback(recorder.close)
        log = RunLog(config.name)
        stack.callback(log.close)
        for line in (*inputs.report, inputs.ends, *notes):
            log.logger.info(line)
        hardware = stack.enter_context(ray_session(config.cluster, needed_cpus(config)))
        require_room(config, hardware, log.logger, learner=False)
        validate_nodes(config, hardware, learner=False)
        once = config.buffer.model_copy(update={"max_draws": 1, "min_size": 0})
        batch_size = config.learner.batch_size
        buffer = ReplayBuffer.start(
            once,
            seed=config.seed,
            batch_size=batch_size,
            inserts_per_step=batch_size,
            ordered=True,
            ahead=AHEAD_STEPS,
            behind=0,
        )
        stack.callback(buffer.shutdown)
        factory = ActorFactory.of(config, hardware, inputs.table, inputs.ends.ids, buffer, config.name)
        pool = ActorPool(
            factory, buffer, FailurePolicy(Limits(), batch_size), log.logger, config.cluster.start_timeout_s
        )
        stack.callback(pool.shutdown)
        pool.add(config.generation.actors)
        written = 0
        for step in range(batches):
            draw = buffer.resolve(wait_for(buffer.draw_ref(), pool))
            recorder.write(step, draw.pairs)
            buffer.advance(step + 1)
            written += len(draw.pairs)
        return written
