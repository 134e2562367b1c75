"""A run's loop in one process: one rank, one actor, the buffer between them, without Ray.

It reads as ``cluster/run/loop.py`` and ``cluster/sources/rollouts.py`` do in lockstep, with the same classes under it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from typing import Any

import torch

from actors.engine_options import environment
from actors.messages import EngineSpec, Work
from actors.plan import Plan
from cluster.config.run_config import RunConfig
from cluster.data.tokenizer import text_decoder, vocabulary_size
from cluster.debugging.stops import Phase, Stops
from cluster.run.inputs import Inputs
from cluster.sources.dataset import DatasetSource, SupervisedSource
from cluster.sources.replay import ReplaySource
from contracts.ports import free_port
from learner.messages import RankSpec
from learner.rank import LearnerRank

ACTOR = "actor-0"
ALONE = (
    "learner.ranks=1",
    "generation.actors=1",
    "generation.tensor_parallel=1",
    "buffer.shards=1",
    "weights.max_staleness=0",
    "weights.publish_every=1",
    "weights.backend=shm",
    "cluster.colocate=false",
)
"""As overrides: one of everything, in lockstep."""


def debug(config: RunConfig, inputs: Inputs, total_steps: int, steps: int, phases: Collection[Phase]) -> None:
    """Make ``steps`` optimizer steps and print each phase. Writes nothing to disk.

    Args:
        config: with ``ALONE``.
        total_steps: of the run, for the learning rate's schedule.
        phases: after which the debugger is entered.

    Raises:
        UserError: model or engine can't be used.
    """
    stops = Stops(phases, text_decoder(inputs.tokenizer))
    if config.method == "sapo":
        asyncio.run(_rollouts(config, inputs, total_steps, steps, stops))
    else:
        _fixed(config, inputs, total_steps, steps, stops)


async def _rollouts(config: RunConfig, inputs: Inputs, total_steps: int, steps: int, stops: Stops) -> None:
    from cluster.debugging.local_buffer import LocalBuffer

    weights: Any = None
    # The rank's sink imports vLLM, which reads these then; and vLLM must find torch and deepspeed set up.
    os.environ.update(environment(torch.cuda.is_available(), config.repeatable_on_gpu))

    def sink() -> Any:
        nonlocal weights
        from cluster.debugging.local_weights import LocalWeights

        weights = LocalWeights()
        return weights

    rank = _rank(config, inputs, total_steps, sink)
    from actors.generator import GenerationActor

    buffer = LocalBuffer(config, stops.written)
    table, generation = inputs.table, config.generation
    plan = Plan(
        config.seed, table.response_lengths, generation.segment_length, generation.responses_per_prompt, table.shares
    )
    actor = GenerationActor(ACTOR, _engine(config, inputs), generation, Work(plan, table), buffer)
    rank.stage(0)
    await weights.deliver(actor)
    working = asyncio.ensure_future(actor.run())
    for step in range(1, steps + 1):
        draw = await buffer.draw(working)
        stops.drawn(draw.pairs, draw, rank.packed(draw.pairs))
        report = rank.step(draw.pairs, len(draw.pairs))
        stops.step = step
        stops.stepped(draw.pairs, report)
        await buffer.annotate(draw.keys, report.reference_scores)
        rank.stage(step)
        await weights.deliver(actor)
        stops.published(step)
        if step < steps:
            await buffer.advance(step)
    await buffer.close()
    await working
    weights.shutdown()  # the process group is the engine's too, which leaves it when the process ends


def _fixed(config: RunConfig, inputs: Inputs, total_steps: int, steps: int, stops: Stops) -> None:
    """The methods without actors."""
    source: DatasetSource | ReplaySource
    if config.method == "replay":
        source = ReplaySource(inputs.batches)
    else:
        kind = SupervisedSource if config.method == "sft" else DatasetSource
        source = kind(inputs.table, seed=config.seed, batch_size=config.learner.batch_size)
    rank = _rank(config, inputs, total_steps, None)
    for step in range(1, steps + 1):
        batch = source.next(step - 1)
        stops.drawn(batch.pairs, None, rank.packed(batch.pairs))
        report = rank.step(batch.pairs, len(batch.pairs))
        stops.step = step
        stops.stepped(batch.pairs, report)
        source.stepped(step, batch, report.reference_scores)
    rank.shutdown()


def _rank(config: RunConfig, inputs: Inputs, total_steps: int, sink: Any) -> LearnerRank:
    """A learner rank that is a group of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", str(config.learner.threads_per_rank))
    vocabulary = vocabulary_size(inputs.tokenizer) if config.method != "sapo" and config.model.add_tokens else 0
    spec = RankSpec(
        model=config.model,
        objective=config.objective,
        reference=config.reference,
        optimizer=config.optimizer,
        learner=config.learner,
        ema=config.ema,
        max_length=config.data.max_length,
        total_steps=total_steps,
        seed=config.seed,
        deterministic=config.repeatable_on_gpu,
        ends=inputs.ends.ids,
        vocabulary=vocabulary,
    )
    rank = LearnerRank(0, 1, spec, sink)
    rank.rendezvous("127.0.0.1", free_port())
    rank.load_weights()
    rank.setup()
    return rank


def _engine(config: RunConfig, inputs: Inputs) -> EngineSpec:
    return EngineSpec(
        model=config.model.path,
        dtype=config.model.dtype,
        max_length=config.data.max_length,
        ends=inputs.ends.ids,
        seed=config.seed,
        backend="shm",
        use_gpu=torch.cuda.is_available(),
        trust_remote_code=config.model.trust_remote_code,
        batch_invariant=config.repeatable_on_gpu,
    )
