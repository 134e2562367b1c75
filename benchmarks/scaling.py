"""SIMULATION: how many actors and shards the buffer's coordinator carries before it is the bottleneck.

No engine runs here. A simulated engine leases plan indices, waits as long as a real one would take, and inserts
pairs of realistic size; a simulated learner draws batches as fast as it gets them. Real are the buffer, its
coordinator, its shards, Ray, and the payloads.
``python -m benchmarks.scaling [--actors 1 16 64 256] [--shards 1 4 16 64]``
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np
import ray

from benchmarks.report import machine, save, table_of
from buffer.client import ReplayBuffer
from buffer.config import BufferConfig
from buffer.messages import Finished, Outcome
from contracts.pair import PreferencePair, as_token_ids

PROMPT, RESPONSE, SEGMENT = 512, 512, 256
"""Tokens of the pairs, about the paper's data."""
REQUEST_S = 4.0
"""Seconds that one segment takes in an engine with IN_FLIGHT requests (256 tokens at 64 tokens/s a request)."""
IN_FLIGHT = 64
HOSTED = 32
"""Simulated engines per process: they only wait, so one process carries many."""


class SimulatedEngines:
    """Several engines, each with IN_FLIGHT requests that take REQUEST_S give or take a half."""

    def __init__(self, buffer: ReplayBuffer, first: int, count: int, speedup: float) -> None:
        self._buffer, self._names, self._speedup = buffer, [f"sim-{first + i}" for i in range(count)], speedup
        draw = np.random.default_rng(first)
        self._prompt = as_token_ids(draw.integers(0, 32_000, PROMPT))
        self._chosen = as_token_ids(draw.integers(0, 32_000, RESPONSE))
        self._replacement = as_token_ids(draw.integers(0, 32_000, SEGMENT))
        self._versions = np.zeros(SEGMENT, np.int32)
        self._waits = draw

    async def run(self) -> None:
        await asyncio.gather(*[self._engine(name) for name in self._names])

    async def _engine(self, name: str) -> None:
        await asyncio.gather(*[self._slots(name) for _ in range(IN_FLIGHT // 8)])

    async def _slots(self, name: str) -> None:
        while (indices := await self._buffer.lease(name, 8)) is not None:
            await asyncio.sleep(REQUEST_S / self._speedup * self._waits.uniform(0.5, 1.5))
            finished = [Finished(index, Outcome.INSERTED, self._pair(index, name)) for index in indices]
            await self._buffer.insert(name, finished)

    def _pair(self, index: int, actor: str) -> PreferencePair:
        return PreferencePair(
            prompt=self._prompt,
            chosen=self._chosen,
            start=128,
            end=128 + SEGMENT,
            replacement=self._replacement,
            suffix_kept=True,
            index=index,
            actor=actor,
            versions=self._versions,
        )


def measure(actors: int, shards: int, seconds: float, speedup: float) -> dict[str, float]:
    """Pairs inserted and batches drawn per second, and the share of what the engines offered that got through."""
    buffer = ReplayBuffer.start(
        BufferConfig(capacity=65_536, shards=shards),
        seed=0,
        batch_size=256,
        inserts_per_step=256,
        ordered=False,
        ahead=1 << 30,
        behind=1 << 30,
    )
    groups = [
        ray.remote(SimulatedEngines).options(num_cpus=0).remote(buffer, first, min(HOSTED, actors - first), speedup)
        for first in range(0, actors, HOSTED)
    ]
    runs = [group.run.remote() for group in groups]
    buffer.draw()
    before, started = buffer.stats(), time.monotonic()
    draw_s: list[float] = []
    while time.monotonic() - started < seconds:
        at = time.monotonic()
        buffer.draw()
        draw_s.append(time.monotonic() - at)
    after, wall = buffer.stats(), time.monotonic() - started
    buffer.close()
    ray.get(runs)
    for group in groups:
        ray.kill(group)
    buffer.shutdown()
    inserted = (after.inserted - before.inserted) / wall
    offered = actors * IN_FLIGHT / (REQUEST_S / speedup)
    return {
        "actors": actors,
        "shards": shards,
        "offered_per_s": offered,
        "inserted_per_s": inserted,
        "carried": inserted / offered,
        "batches_per_s": len(draw_s) / wall,
        "draw_s": float(np.median(draw_s)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--speedup", type=float, default=1.0, help="engines this many times faster than REQUEST_S says")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR")
    results = [
        measure(actors, shards, arguments.seconds, arguments.speedup)
        for shards in arguments.shards
        for actors in arguments.actors
    ]
    head = ["simulated actors", "shards", "offered pairs/s", "inserted pairs/s", "carried", "draw of 256, ms"]
    rows = [
        [
            str(r["actors"]),
            str(r["shards"]),
            f"{r['offered_per_s']:.0f}",
            f"{r['inserted_per_s']:.0f}",
            f"{r['carried']:.0%}",
            f"{1e3 * r['draw_s']:.1f}",
        ]
        for r in results
    ]
    print(table_of(head, rows))
    save("scaling", {"machine": machine(), "simulation": True, "request_s": REQUEST_S, "results": results})
    ray.shutdown()


if __name__ == "__main__":
    main()
