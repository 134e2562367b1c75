"""Tokens per second through a generation actor, the whole way: leases, cuts, splices and inserts included."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray

from actors.config import GenerationConfig
from actors.messages import Work
from actors.plan import Plan
from actors.token_table import TokenTable
from benchmarks.gpu.actors import start, write
from benchmarks.gpu.scale import ARCHITECTURES, Figure, Scale
from buffer.client import ReplayBuffer
from buffer.config import BufferConfig

ROWS = 500


def measure(scale: Scale) -> Iterator[Figure]:
    """One figure."""
    prompt, response, segment = map(int, scale.pair_shape.split("/"))
    draw, vocabulary = np.random.default_rng(0), ARCHITECTURES[scale.learner].vocabulary
    table = TokenTable.from_rows(
        [(draw.integers(3, vocabulary, prompt), draw.integers(3, vocabulary, response)) for _ in range(ROWS)]
    )
    generation = GenerationConfig(
        segment_length=segment, max_concurrent_requests=min(256, scale.requests), gpu_memory_utilization=0.6
    )
    buffer = ReplayBuffer.start(
        BufferConfig(capacity=scale.requests),
        seed=0,
        batch_size=1,
        inserts_per_step=scale.requests,
        ordered=False,
        ahead=0,
        behind=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Plan(0, table.response_lengths, segment, 1), table)
        actor = start(scale, write(scale, Path(folder)), "shm", generation, work, buffer)
        ray.get(actor.ready.remote())
        running, rates, before = actor.run.remote(), [], 0
        for turn in range(scale.rounds + 1):  # the first is a warm-up
            started = time.perf_counter()
            buffer.draw()
            seconds = time.perf_counter() - started
            total = buffer.stats().generated_tokens
            if turn:
                rates.append((total - before) / seconds)
            before = total
            buffer.advance(turn + 1)
        buffer.close()
        ray.get(running)
    note = f"{scale.requests} requests a round"
    shape = f"{scale.learner}, {scale.pair_shape}"
    yield Figure("engine", "through the actor", shape, tokens_per_s=statistics.median(rates), note=note)
