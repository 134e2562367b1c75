"""Inserts and draws of the replay buffer against its size and number of shards.

Peer: what one writes first, a Ray actor with ``collections.deque`` and ``random.choices`` over weights 1 / (draws + 1),
which draws with replacement. Bar: a draw from a million pairs takes at most twice as long as from a thousand.
``python -m benchmarks.buffer [--sizes 1024 ...] [--shards 1 4 16]``
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.report import machine, save, table_of
from buffer.client import ReplayBuffer
from buffer.codec import encode
from buffer.config import BufferConfig
from buffer.index import ReplayIndex
from buffer.messages import Finished, InsertRequest, InsertRow, Outcome, SlotPayloads
from buffer.shard import Shard
from contracts.pair import PreferencePair, as_token_ids

BATCH = 256
"""Pairs per draw."""
GROUP = 64
"""Pairs per insert."""
CALLS_IN_FLIGHT = 4
SHAPES = {"512 + 512, segment 256": (512, 512, 256), "20 + 20, segment 8": (20, 20, 8)}
"""Tokens of prompt + response, segment."""
FILLED = (20, 20, 8)
"""The pairs of the speed tables: a million of them fit a small machine."""
UNLIMITED = 1 << 40
BAR = 2.0


def pair_of(shape: tuple[int, int, int], seed: int = 0) -> PreferencePair:
    draw = np.random.default_rng(seed)
    prompt, chosen, replacement = (as_token_ids(draw.integers(0, 32_000, tokens)) for tokens in shape)
    return PreferencePair(
        prompt,
        chosen,
        0,
        shape[2],
        replacement,
        True,
        index=seed,
        row=seed,
        actor="actor-1",
        versions=np.full(shape[2], 3, np.int32),
        mean_logprob=-1.0,
    )


def median_s(action: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, after a few that do not count."""
    seconds = []
    for i in range(repeats + 3):
        started = time.perf_counter()
        action()
        if i >= 3:
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


class DequePeer:
    """The peer: entries [pair, times drawn]."""

    def __init__(self, capacity: int) -> None:
        self._entries: deque[list] = deque(maxlen=capacity)

    def fill(self, pairs: list[PreferencePair], count: int) -> None:
        self._entries.extend([pairs[i % len(pairs)], 0] for i in range(count))

    def insert(self, pairs: list[PreferencePair]) -> None:
        self._entries.extend([pair, 0] for pair in pairs)

    def draw(self, count: int) -> list[PreferencePair]:
        weights = [1 / (draws + 1) for _, draws in self._entries]
        chosen = random.choices(self._entries, weights, k=count)
        for entry in chosen:
            entry[1] += 1
        return [pair for pair, _ in chosen]


# ---- without Ray ------------------------------------------------------------------------------------------------


def measure_index(size: int) -> dict[str, float]:
    index = ReplayIndex(BufferConfig(capacity=size), seed=0)
    for _ in range(size):
        index.insert(0, 0)
    peer, pair = DequePeer(size), pair_of(FILLED)
    peer.fill([pair], size)
    few = 5 if size > 10**5 else 50
    inserting = median_s(lambda: [index.insert(0, 0) for _ in range(GROUP)], 50) / GROUP
    return {
        "size": size,
        "insert_s": inserting,
        "draw_s": median_s(lambda: index.draw(BATCH), 100),
        "peer_insert_s": median_s(lambda: peer.insert([pair] * GROUP), 50) / GROUP,
        "peer_draw_s": median_s(lambda: peer.draw(BATCH), few),
    }


# ---- with Ray ---------------------------------------------------------------------------------------------------


@contextmanager
def started(size: int, shards: int) -> Iterator[ReplayBuffer]:
    buffer = ReplayBuffer.start(
        BufferConfig(capacity=size, shards=shards),
        seed=0,
        batch_size=BATCH,
        inserts_per_step=BATCH,
        ordered=False,
        ahead=UNLIMITED,
        behind=UNLIMITED,
    )
    try:
        yield buffer
    finally:
        buffer.shutdown()


def fill(buffer: ReplayBuffer, size: int) -> None:
    """Insert copies of one encoded pair, as the client does but without encoding each."""
    payload = encode(pair_of(FILLED))

    async def work() -> None:
        for first in range(0, size, 10_240):
            count = min(10_240, size - first)
            indices = await buffer.lease("fill", count)
            assert indices is not None
            rows = [InsertRow(index, Outcome.INSERTED, bytes(bytearray(payload)), 0) for index in indices]
            await buffer.coordinator.insert.remote(InsertRequest("fill", rows, 0))

    asyncio.run(work())


async def insert_for(seconds: float, insert: Callable[[], Any]) -> float:
    """Pairs per second of calls that insert GROUP pairs each."""
    deadline, done = time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            await insert()
            done += GROUP

    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(CALLS_IN_FLIGHT)])
    return done / (time.perf_counter() - began)


def measure_buffer(buffer: ReplayBuffer, seconds: float) -> dict[str, float]:
    pairs = [pair_of(FILLED, seed) for seed in range(GROUP)]

    async def insert() -> None:
        indices = await buffer.lease("bench", GROUP)
        assert indices is not None
        finished = [Finished(index, Outcome.INSERTED, pair) for index, pair in zip(indices, pairs, strict=False)]
        await buffer.insert("bench", finished)

    draw_s = median_s(buffer.draw, 20)
    return {"draw_s": draw_s, "inserts_per_s": asyncio.run(insert_for(seconds, insert))}


def measure_peer(size: int, seconds: float) -> dict[str, float]:
    peer = ray.remote(DequePeer).options(num_cpus=0).remote(size)
    pairs = [pair_of(FILLED, seed) for seed in range(GROUP)]
    # So many that a draw has few twice: the same object would be sent once.
    ray.get(peer.fill.remote([pair_of(FILLED, seed) for seed in range(4096)], size))

    async def insert() -> None:
        await peer.insert.remote(pairs)

    few = 3 if size > 10**5 else 20
    draw_s = median_s(lambda: ray.get(peer.draw.remote(BATCH)), few)
    inserts = asyncio.run(insert_for(seconds, insert))
    ray.kill(peer)
    return {"draw_s": draw_s, "inserts_per_s": inserts}


def measure_ray(sizes: list[int], shard_counts: list[int], seconds: float) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for size in sizes:
        results.append({"size": size, "shards": None} | measure_peer(size, seconds))
        with tempfile.TemporaryDirectory() as folder:
            for number, shards in enumerate(shard_counts):
                with started(size, shards) as buffer:
                    times = {}
                    if number == 0:
                        fill(buffer, size)
                        at = time.perf_counter()
                        buffer.snapshot(folder)()
                        times["snapshot_s"] = time.perf_counter() - at
                    else:
                        at = time.perf_counter()
                        buffer.restore(folder)
                        times["restore_s"] = time.perf_counter() - at
                    results.append({"size": size, "shards": shards} | times | measure_buffer(buffer, seconds))
    return results


# ---- bytes ------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure_bytes(shape: tuple[int, int, int]) -> dict[str, float]:
    """Bytes per pair: encoded, pickled, and held by a shard's process before and after its pairs were replaced by
    others of a quarter to the whole of that length, three times over."""
    pair, count = pair_of(shape), 20_000
    payload = encode(pair)
    shard, before = Shard(), resident_bytes()
    shard.insert(SlotPayloads({slot: bytes(bytearray(payload)) for slot in range(count)}))
    held = resident_bytes() - before
    draw, largest = random.Random(0), held
    for first in range(0, 3 * count, GROUP):
        slots = [slot % count for slot in range(first, first + GROUP)]
        shard.insert(SlotPayloads({slot: payload[: draw.randrange(len(payload) // 4, len(payload))] for slot in slots}))
        largest = max(largest, resident_bytes() - before)
    return {
        "tokens_bytes": 4 * sum(shape),
        "encoded_bytes": len(payload),
        "pickled_bytes": len(pickle.dumps(pair, protocol=5)),
        "held_bytes": held / count,
        "held_after_turnover_bytes": largest / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_024, 10_240, 102_400, 1_024_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=0.7, help="of inserting, for each figure")
    arguments = parser.parse_args()

    sizes_in_bytes = {name: measure_bytes(shape) for name, shape in SHAPES.items()}
    head = ["tokens of a pair", "token bytes", "encoded", "pickled", "held by a shard", "after three turnovers"]
    print(table_of(head, [[name, *(f"{value:.0f}" for value in row.values())] for name, row in sizes_in_bytes.items()]))

    index = [measure_index(size) for size in arguments.sizes]
    head = ["pairs", "insert, us", f"draw of {BATCH}, ms", "deque: insert, us", f"deque: draw of {BATCH}, ms"]
    rows = [
        [
            f"{r['size']:,}",
            f"{1e6 * r['insert_s']:.1f}",
            f"{1e3 * r['draw_s']:.2f}",
            f"{1e6 * r['peer_insert_s']:.1f}",
            f"{1e3 * r['peer_draw_s']:.2f}",
        ]
        for r in index
    ]
    print("\nThe index alone, without Ray and payloads:\n" + table_of(head, rows))

    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR")
    over_ray = measure_ray(arguments.sizes, arguments.shards, arguments.seconds)
    ray.shutdown()
    head = ["pairs", "shards", "inserted pairs/s", "drawn pairs/s", f"draw of {BATCH}, ms"]
    rows = [
        [
            f"{r['size']:,}",
            str(r["shards"] or "deque actor"),
            f"{r['inserts_per_s']:,.0f}",
            f"{BATCH / r['draw_s']:,.0f}",
            f"{1e3 * r['draw_s']:.1f}",
        ]
        for r in over_ray
    ]
    print(f"\nOver Ray, pairs of {FILLED[0]} + {FILLED[1]} tokens:\n" + table_of(head, rows))

    ratios = {"index": index[-1]["draw_s"] / index[0]["draw_s"]}
    for shards in arguments.shards:
        draws = [r["draw_s"] for r in over_ray if r["shards"] == shards]
        ratios[f"{shards} shards"] = draws[-1] / draws[0]
    print(f"\nA draw from {arguments.sizes[-1]:,} pairs against {arguments.sizes[0]:,} (bar: {BAR:.0f} times):")
    print(", ".join(f"{name} {ratio:.2f} times" for name, ratio in ratios.items()))
    save(
        "buffer",
        {
            "machine": machine(),
            "batch": BATCH,
            "bytes_per_pair": sizes_in_bytes,
            "index": index,
            "ray": over_ray,
            "ratios": ratios,
        },
    )


if __name__ == "__main__":
    main()
