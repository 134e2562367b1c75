"""How long a step takes: learner and engines as arithmetic and bytes over what a device does per second.

The model, in words. A learner rank computes its tokens at 2 FLOPs a weight and pass (forward 1, backward 2, a
recomputed forward 1, a reference's forward 1), reads and writes its states once, and moves gradients (and, under ZeRO
3, weights) over the link. An engine's step reads all weights and the caches of the requests in flight, or computes
their tokens, whichever is longer, and gives each request one token. Overlapped, the slower side decides; in lockstep,
and where both share one GPU, they take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from cluster.config.run_config import RunConfig
from cluster.planning.memory import dtype_bytes, engine_memory
from cluster.planning.model_shape import ModelShape
from cluster.planning.workload import Workload, trained_tokens
from learner.zero.optim import effective_zero_stage


@dataclass(frozen=True)
class Device:
    """What one GPU, or one core, does in practice."""

    name: str
    flops: float
    """Multiplications and additions a second in the run's dtype, as training reaches them."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Between ranks."""
    pass_s: float
    """Of one forward and backward pass, however few its tokens."""
    engine_step_s: float
    """Of one engine step, however few its tokens."""
    request_s: float
    """Of an actor for each request: lease, splice, insert, the engine's bookkeeping."""


DEVICES = {
    # 40 % of the data sheet's dense bf16 rate (an H200 trained 1.2 B weights at 43 %, docs/gpu.md), 70 % of its memory
    # bandwidth, half of NVLink's. The rest is read, not measured.
    "h100": Device("h100", 0.40 * 989e12, 0.7 * 3.35e12, 225e9, 0.05, 0.004, 0.0005),
    "h200": Device("h200", 0.40 * 989e12, 0.7 * 4.8e12, 225e9, 0.05, 0.004, 0.0005),
    "a100": Device("a100", 0.45 * 312e12, 0.7 * 2.04e12, 150e9, 0.05, 0.006, 0.0005),
    # One core of the machine of docs/benchmarks.md, fp32. FLOPs: 2,497 tokens of 16.9 M parameters in 3.65 s. Fixed
    # costs: the demo, overlapped, trains 221 pairs a second with both sides busy.
    "cpu": Device("cpu", 69e9, 8e9, 2e9, 0.09, 0.003, 0.004),
}


@dataclass(frozen=True)
class Calibration:
    """Factors on what the model says, from a run that was measured; 1 and 0 where none was."""

    learner: float = 1.0
    generation: float = 1.0
    publication: float = 1.0
    rest_s: float = 0.0
    """Of a step, outside learner, publication and waiting."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    learner_s: float
    publication_s: float
    generation_s: float
    """Until all actors together have made a step's worth of pairs; 0 without actors."""
    rest_s: float
    overlapped: bool

    @property
    def total_s(self) -> float:
        learner = self.learner_s + self.publication_s + self.rest_s
        return max(learner, self.generation_s) if self.overlapped else learner + self.generation_s

    @property
    def learner_idle(self) -> float:
        """Share of the step in which the learner waits for pairs."""
        return 1.0 - (self.learner_s + self.publication_s + self.rest_s) / self.total_s

    @property
    def actors_idle(self) -> float:
        """Share of the step in which actors are held back."""
        return 1.0 - self.generation_s / self.total_s


def step_time(
    config: RunConfig,
    shape: ModelShape,
    workload: Workload,
    device: Device,
    gpu_memory_bytes: float | None,
    ranks: int,
    actors: int,
    calibration: Calibration = Calibration(),
) -> StepTime:
    """Of a run with so many ranks and actors."""
    learner_s = calibration.learner * learner_seconds(config, shape, workload, device, ranks)
    if config.method != "sapo":
        return StepTime(learner_s, 0.0, 0.0, calibration.rest_s, overlapped=True)
    generation_s = generation_seconds(config, shape, workload, device, gpu_memory_bytes)
    return StepTime(
        learner_s,
        calibration.publication * publication_seconds(config, shape, device),
        calibration.generation * generation_s / actors if actors else inf,
        calibration.rest_s,
        overlapped=config.weights.max_staleness > 0 and not config.cluster.colocate,
    )


def learner_seconds(config: RunConfig, shape: ModelShape, workload: Workload, device: Device, ranks: int) -> float:
    """Of one optimizer step on each of ``ranks`` ranks, communication not overlapped with computing."""
    tokens = trained_tokens(config, workload) * config.learner.batch_size / ranks
    # Backward twice the forward; without gradients of frozen weights once.
    passes: float = 1 + (2 if shape.trainable == shape.parameters else 1) + config.model.gradient_checkpointing
    fresh = min(1.0, config.inserts_per_step / config.learner.batch_size) if config.method == "sapo" else 1.0
    if config.reference.mode != "none":
        passes += fresh
    computing = passes * tokens * flops_per_token(shape, workload.row) / device.flops
    rows = ceil(tokens / config.learner.tokens_per_batch)
    zero, size = effective_zero_stage(config.model, config.learner), dtype_bytes(config)
    moved = 2.0 * size * shape.trainable * (ranks > 1)
    if zero == 3:
        moved += rows * 2.0 * size * shape.parameters * (ranks > 1)
    # Masters, optimizer, EMA and gradients are read, and all but the last written.
    touched = 36.0 * shape.trainable / (ranks if zero else 1)
    return computing + rows * device.pass_s + moved / device.link_bytes_per_s + touched / device.memory_bytes_per_s


def generation_seconds(
    config: RunConfig, shape: ModelShape, workload: Workload, device: Device, gpu_memory_bytes: float | None
) -> float:
    """Of one actor, for all pairs of one optimizer step; infinite where no request fits its cache."""
    engine = engine_memory(config, shape, workload, gpu_memory_bytes)
    indices = config.inserts_per_step
    requests = min(engine.concurrency, indices * (1 + config.weights.max_staleness))
    if requests < 1:
        return inf
    parts, size = config.generation.tensor_parallel, dtype_bytes(config)
    context = workload.prompt + workload.prefix + workload.segment / 2
    per_token = flops_per_token(shape, context)
    reading = shape.parameters * size / parts / device.memory_bytes_per_s
    computing = requests * per_token / parts / device.flops
    caches = requests * context * engine.kv_bytes_per_token / device.memory_bytes_per_s
    token_step = device.engine_step_s + max(reading, computing) + caches
    prefill = (workload.prompt + workload.prefix) * per_token / parts / device.flops
    return indices * (workload.segment * token_step / requests + prefill + device.request_s)


def publication_seconds(config: RunConfig, shape: ModelShape, device: Device) -> float:
    """In which the learner stands still, spread over the steps between publications: the EMA is gathered and copied."""
    size = dtype_bytes(config)
    copied = shape.parameters * size * (1 / device.link_bytes_per_s + 2 / device.memory_bytes_per_s)
    return copied / config.weights.publish_every


def flops_per_token(shape: ModelShape, length: float) -> float:
    """Of a forward: two a weight, and the attention over half of a sequence of ``length`` tokens on average."""
    return 2.0 * shape.active + 4.0 * shape.layers * shape.heads * shape.head_size * length / 2
