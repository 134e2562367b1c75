"""Tokens per second through a generation actor against the bare engine on the same requests, alternating rounds.

    python -m benchmarks.engine [--requests 256] [--rounds 20] [--unpacked]

Bare: vLLM's ``LLM.generate`` on all requests at once, in a Ray actor of its own. Ours: the whole way, leases of a real
buffer, cuts, splices and inserts included. Same model (3 M Llama, fp32, random), prompts of 20 tokens, segments of 64.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray

from actors.config import GenerationConfig
from actors.engine_options import cpu_arguments, environment
from actors.generator import GenerationActor
from actors.messages import EngineSpec, Work
from actors.plan import Plan
from actors.splice import context
from actors.token_table import TokenTable
from benchmarks.models import write_llama
from benchmarks.report import machine, save, table_of
from buffer.client import ReplayBuffer
from buffer.config import BufferConfig

PROMPT, SEGMENT, ROWS, VOCABULARY, EOS = 20, 64, 500, 1024, 2
MAX_LENGTH = 128


def requests() -> Work:
    draw = np.random.default_rng(0)
    rows = [(draw.integers(3, VOCABULARY, PROMPT), draw.integers(3, VOCABULARY, SEGMENT)) for _ in range(ROWS)]
    table = TokenTable.from_rows(rows)
    return Work(Plan(0, table.response_lengths, SEGMENT, 1), table)


class BareEngine:
    """vLLM offline, as its documentation shows it."""

    def __init__(self, model: str, config: GenerationConfig, work: Work) -> None:
        import os

        os.environ.update(environment(use_gpu=False))
        from vllm import LLM

        self._config, self._plan, self._table = config, work.plan, work.table
        self._engine = LLM(
            model,
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=MAX_LENGTH,
            max_num_seqs=config.max_concurrent_requests,
            **cpu_arguments(MAX_LENGTH),
        )

    def generate(self, first: int, count: int) -> int:
        """Tokens generated for plan indices [first, first + count)."""
        from vllm import SamplingParams

        c = self._config
        prompts, parameters = [], []
        for index in range(first, first + count):
            item = self._plan.item(index)
            prompts.append({"prompt_token_ids": context(self._table[item.row], item).tolist()})
            parameters.append(
                SamplingParams(
                    temperature=c.temperature,
                    top_p=c.top_p,
                    top_k=c.top_k,
                    max_tokens=item.end - item.start,
                    seed=item.sampling_seed,
                    stop_token_ids=[EOS],
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                )
            )
        return sum(len(o.outputs[0].token_ids) for o in self._engine.generate(prompts, parameters, use_tqdm=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256, help="per round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--unpacked", action="store_true", help="the actor with generation.packed_weights=false")
    arguments = parser.parse_args()
    count = arguments.requests
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        model = write_llama(Path(folder), "3M", VOCABULARY)
        config, work = GenerationConfig(segment_length=SEGMENT, packed_weights=not arguments.unpacked), requests()
        bare = ray.remote(num_cpus=0)(BareEngine).remote(model, config, work)
        buffer = ReplayBuffer.start(
            BufferConfig(capacity=count), seed=0, batch_size=1, inserts_per_step=count, ordered=False, ahead=0, behind=0
        )
        engine = EngineSpec(model, "float32", MAX_LENGTH, ends=(EOS,), seed=0, backend="shm", use_gpu=False)
        actor = (
            ray.remote(GenerationActor)
            .options(num_cpus=0, max_concurrency=100)
            .remote("actor-0", engine, config, work, buffer)
        )
        ray.get([bare.generate.remote(0, 64), actor.ready.remote()])
        results: dict[str, list[float]] = {"bare engine": [], "through the actor": []}
        running, before = actor.run.remote(), 0
        for turn in range(arguments.rounds + 1):  # the first is a warm-up
            # The actor may start on a round when the one before it is acknowledged; the draw waits for its last insert.
            started = time.perf_counter()
            buffer.draw()
            seconds = time.perf_counter() - started
            total = buffer.stats().generated_tokens
            rate, before = (total - before) / seconds, total
            started = time.perf_counter()
            tokens = ray.get(bare.generate.remote(turn * count, count))
            if turn:
                results["through the actor"].append(rate)
                results["bare engine"].append(tokens / (time.perf_counter() - started))
            buffer.advance(turn + 1)
        buffer.close()
        ray.get(running)
    ratios = [a / b for a, b in zip(results["through the actor"], results["bare engine"], strict=True)]
    rows = [[name, f"{statistics.median(r):.0f}", f"{min(r):.0f}-{max(r):.0f}"] for name, r in results.items()]
    print(table_of(["", "tokens/s, median", "range"], rows))
    # Rounds are of about as many tokens each: a mean of seconds per token is that of the whole time.
    whole = statistics.harmonic_mean(results["through the actor"]) / statistics.harmonic_mean(results["bare engine"])
    print(f"ratio, round by round: {', '.join(f'{r:.3f}' for r in ratios)}")
    print(f"ratio, median of rounds {statistics.median(ratios):.3f}, of all tokens over all time {whole:.3f}")
    save(
        "engine",
        {"machine": machine(), "requests": count, "tokens_per_s": results, "ratios": ratios, "whole": whole},
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
