"""The parity check on running engines: the right weights pass, and each thing that it is for is caught.

On a tiny model, and on SmolLM2-135M where it is installed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from cluster.config.sections import WeightsConfig
from cluster.weights.judgement import Scores
from cluster.weights.parity import ParityCheck
from cluster.workers.ray_calls import Worker
from demo.docstrings import conversations
from support.engines import SEQUENCES, start_actor, start_sender

cloudpickle.register_pickle_by_value(sys.modules[__name__])

GREEDY = GenerationConfig(
    temperature=0.0, max_concurrent_requests=8, gpu_memory_utilization=0.15, kv_cache_bytes=1 << 28
)


class Forgetful(GenerationActor):
    """Can be told to keep its prefix cache when weights change."""

    async def keep_cache(self) -> None:
        engine = self._engine._engine
        pause = engine.pause_generation
        engine.pause_generation = lambda *, mode, clear_cache: pause(mode=mode, clear_cache=False)


@dataclass
class Member:
    worker: Worker
    version: int = 0
    name: str = "a"


@dataclass
class Pool:
    """One running actor."""

    member: Member
    replaced: list[str] = field(default_factory=list)

    def wait_for_version(self, version: int, unless: Callable[[], bool]) -> None: ...

    def first_done(self, calls: list[Any], timeout_s: float) -> list[Any]:
        return ray.wait(calls, timeout=timeout_s)[0]

    def running(self) -> list[Member]:
        return [self.member]

    def answer(self, call: Any) -> Any:
        return ray.get(call)

    def replace(self, member: Member, reason: str) -> None:
        self.replaced.append(reason)


class Run:
    """A sender in the place of the learner, one actor, and the check between them."""

    def __init__(self, folder: str, dtype: str, sequences: list[list[int]], gpus: float = 0.0) -> None:
        """``gpus``: of the sender, and of the actor."""
        self.sender = start_sender(folder, "shm", dtype, gpus=gpus)
        self.actor = start_actor("a", folder, "shm", GREEDY, kind=Forgetful, dtype=dtype, gpus=gpus)
        ray.get([self.sender.retarget.remote({"a": self.actor}), self.actor.ready.remote()])
        pool: Any = Pool(Member(Worker("a", self.actor)))
        self.pool = pool
        self.parity = ParityCheck(WeightsConfig(), dtype, sequences, self, pool, logging.getLogger(__name__))

    def score_ema(self, sequences: list[list[int]]) -> Scores:
        scores: Scores = ray.get(self.sender.score.remote(sequences))
        return scores

    def publish(self, version: int, *, wrong_layer: bool = False) -> None:
        stage = self.sender.stage_with_a_wrong_layer if wrong_layer else self.sender.stage_as_is
        ray.get(stage.remote(version))
        (ack,) = ray.get(self.sender.send.remote())
        assert not ack.error
        self.pool.member.version = version

    def check(self, version: int) -> tuple[dict[str, float], str]:
        """Metrics, and why the actor was replaced, or nothing."""
        self.pool.replaced.clear()
        metrics = self.parity.check(version)
        return metrics, " ".join(self.pool.replaced)

    def close(self) -> None:
        ray.get(self.sender.shutdown.remote())
        for handle in (self.actor, self.sender):
            ray.kill(handle)


def judge_what_can_happen(run: Run, moved: float) -> None:
    """``moved``: by what share of themselves weights move from version to version."""
    sender = run.sender
    run.publish(0)
    run.parity.calibrate(0)
    assert not run.pool.replaced
    ray.get(sender.move.remote(1, moved))
    run.publish(1)
    metrics, reason = run.check(1)
    assert not reason and metrics["weights/parity_mean_nats"] > 0
    # The learner has moved on, the engine says that it has too.
    ray.get(sender.move.remote(2, moved))
    run.pool.member.version = 2
    _, reason = run.check(2)
    assert "its weights are older than it says" in reason
    run.publish(3)
    _, reason = run.check(3)
    assert not reason
    run.publish(4, wrong_layer=True)
    _, reason = run.check(4)
    assert "nats per token off the learner's" in reason


def docstring_tokens(folder: str, tokens: int, rows: int) -> list[list[int]]:
    """Rows of so many tokens of English each."""
    from transformers import AutoTokenizer

    text = "\n".join(answer["content"] for _, answer in conversations(0))
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return [ids[i * tokens : (i + 1) * tokens] for i in range(rows)]


@pytest.fixture
def tiny(ray_local: None, tiny_llama_tied: str) -> Iterator[Run]:
    more = [np.random.default_rng(i).integers(3, 128, 200).tolist() for i in range(4)]
    run = Run(tiny_llama_tied, "float32", [*SEQUENCES, *more])
    yield run
    run.close()


@pytest.mark.slow
def test_right_weights_pass_and_wrong_ones_are_caught(tiny):
    judge_what_can_happen(tiny, moved=1e-3)


@pytest.mark.slow
def test_a_prefix_cache_that_outlives_its_weights_is_caught(tiny):
    tiny.publish(0)
    tiny.parity.calibrate(0)
    ray.get(tiny.actor.keep_cache.remote())
    ray.get(tiny.sender.move.remote(1, 0.1))
    tiny.publish(1)
    _, reason = tiny.check(1)
    assert "its prefix cache is not of these weights" in reason


@pytest.mark.slow
def test_a_real_model_in_fp32_passes_and_what_is_wrong_with_it_is_caught(ray_local, smollm2):
    run = Run(smollm2, "float32", docstring_tokens(smollm2, tokens=140, rows=4))
    judge_what_can_happen(run, moved=1e-3)
    # The cache of version 3's rows is left, and the weights are right.
    ray.get(run.actor.keep_cache.remote())
    ray.get(run.sender.move.remote(5, 1e-2))
    run.publish(5)
    _, reason = run.check(5)
    assert "its prefix cache is not of these weights" in reason
    run.close()


@pytest.mark.slow
def test_a_real_model_in_bfloat16_passes_and_what_is_wrong_with_it_is_caught(ray_local, smollm2):
    """Few tokens: a CPU without bf16 instructions takes ten times as long. Six minutes on two busy cores."""
    run = Run(smollm2, "bfloat16", docstring_tokens(smollm2, tokens=64, rows=2))
    judge_what_can_happen(run, moved=0.05)
    run.close()


@pytest.mark.gpu
@pytest.mark.slow
def test_a_real_model_in_bfloat16_on_a_gpu_passes_and_what_is_wrong_with_it_is_caught(ray_local, smollm2):
    run = Run(smollm2, "bfloat16", docstring_tokens(smollm2, tokens=140, rows=8), gpus=0.5)
    judge_what_can_happen(run, moved=0.05)
    # The cache of version 3's rows is left, and the weights are right.
    ray.get(run.actor.keep_cache.remote())
    ray.get(run.sender.move.remote(5, 0.3))
    run.publish(5)
    _, reason = run.check(5)
    assert reason
    run.close()
