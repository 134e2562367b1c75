"""Generation alone: actors write pairs with the starting model, and a file keeps them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from buffer.client import ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.data.table import load_table
from cluster.storage.recording import PairRecorder
from cluster.workers.actor_factory import ActorFactory
from cluster.workers.actor_pool import Fleet
from cluster.workers.ray_session import needed_cpus, ray_cluster
from contracts.errors import UserError

AHEAD_STEPS = 8
"""Batches that are generated ahead of the one being written to the file."""


def generate(config: RunConfig, out: Path, batches: int) -> int:
    """Record ``batches`` batches of ``learner.batch_size`` pairs, each pair once; returns the pairs written.

    The weights are those of ``model.path`` throughout. Method ``replay`` trains on the file.

    Raises:
        UserError: the config is not of method sapo, or data, model or cluster can't be used.
    """
    if config.method != "sapo":
        raise UserError(f"method {config.method}: only method sapo generates pairs")
    table, tokenizer, report = load_table(config.data, config.model, config.method)
    say = Console(stderr=True).print
    say(str(report))
    with ExitStack() as stack:
        hardware = stack.enter_context(ray_cluster(config.cluster, needed_cpus(config)))
        once = config.buffer.model_copy(update={"max_draws": 1, "min_size": 0})
        buffer = ReplayBuffer.start(
            once,
            seed=config.seed,
            batch_size=config.learner.batch_size,
            inserts_per_step=config.learner.batch_size,
            ordered=True,
            ahead=AHEAD_STEPS,
            behind=0,
        )
        stack.callback(buffer.shutdown)
        fleet = Fleet(ActorFactory.of(config, hardware, table, tokenizer.eos_token_id, buffer), buffer, say)
        stack.callback(fleet.shutdown)
        fleet.add(config.generation.actors)
        recorder = PairRecorder(out)
        stack.callback(recorder.close)
        written = 0
        for step in range(batches):
            draw = buffer.resolve(fleet.wait(buffer.draw_ref()))
            recorder.write(step, draw.pairs)
            buffer.advance(step + 1)
            written += len(draw.pairs)
        return written
