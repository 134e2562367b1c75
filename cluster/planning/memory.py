"""Bytes of a learner rank, an engine, a node and a checkpoint. Arithmetic on shapes; nothing is started.

Model states are exact. Activations are what a Llama-like block saves for its backward, and what vLLM takes beside
weights and cache is a round figure: both are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.engine_options import BATCHED_TOKENS, CPU_KV_CACHE_BYTES
from cluster.config.run_config import RunConfig
from cluster.planning.model_shape import ModelShape
from cluster.planning.workload import Workload, fullest_batch_tokens
from learner.zero.optim import effective_zero_stage

GIB = 2**30
MASTER, EMA = 4, 4
"""Bytes a trained parameter: fp32."""
STATES = {"adamw": 8, "rmsprop": 4}
"""Bytes a trained parameter: fp32, two states or one."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default reduce_bucket_size and, under ZeRO 3, prefetched parameters up to a tenth of that."""
PREFETCH_ELEMENTS = 50_000_000
ENGINE_RESERVE_BYTES = 2 * GIB
"""What vLLM takes on a GPU beside weights, cache and logits: CUDA context, graphs, its workspace."""
RANK_PROCESS_BYTES = {True: 3 * GIB, False: GIB // 2}
"""Host memory of a rank's process before any weight, with CUDA libraries and without. Without, measured: 0.38 GiB after
the imports of torch, transformers and DeepSpeed; process groups and optimizer add to them."""
ACTOR_PROCESS_BYTES = {True: 3 * GIB, False: 3 * GIB // 4}
"""The same of an actor's. Without, measured: 0.49 GiB after the imports of torch and vLLM, 0.75 GiB with an engine that
is up, less its weights and cache."""
PAIR_BYTES = 96
"""Of a pair in the buffer, beside its token ids and versions (4 bytes each)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one learner rank."""

    weights: float
    gradients: float
    masters: float
    """0 where the weights are fp32 and not sharded: they are the masters."""
    optimizer: float
    ema: float
    reference: float
    gathering: float
    """Buckets of the reduction, and weights that ZeRO 3 gathers for the layer at work."""
    activations: float
    logits: float
    offloaded: bool
    """Masters, optimizer, EMA and reference are in host memory."""

    @property
    def states(self) -> float:
        """What is held between steps and may be offloaded."""
        return self.masters + self.optimizer + self.ema + self.reference

    @property
    def total(self) -> float:
        """All of it, wherever it lies."""
        passing = self.gradients + self.gathering + self.activations + self.logits
        return self.weights + self.states + passing

    @property
    def on_device(self) -> float:
        return self.total - (self.states if self.offloaded else 0.0)

    @property
    def on_host(self) -> float:
        """Beside the process itself, on a machine with GPUs."""
        return self.states if self.offloaded else 0.0


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one engine on each of its GPUs, or in its process on CPU."""

    weights: float
    reserve: float
    kv_cache: float
    kv_bytes_per_token: float
    concurrency: int
    """Requests that run at once: as many as the cache holds, at most generation.max_concurrent_requests."""

    @property
    def total(self) -> float:
        return self.weights + self.reserve + self.kv_cache


def dtype_bytes(config: RunConfig) -> int:
    """Bytes of a weight as learner and engine compute with it."""
    return 2 if config.model.dtype == "bfloat16" else 4


def rank_memory(
    config: RunConfig, shape: ModelShape, ranks: int, workload: Workload | None = None, *, stage: int | None = None
) -> RankMemory:
    """Of one of ``ranks`` ranks.

    Args:
        workload: None takes full rows, of ``learner.tokens_per_batch`` tokens.
        stage: of ZeRO; default: the config's.
    """
    learner = config.learner if stage is None else config.learner.model_copy(update={"zero_stage": stage})
    zero = effective_zero_stage(config.model, learner)
    size, frozen = dtype_bytes(config), shape.parameters - shape.trainable
    optimizer_share = shape.trainable / (ranks if zero >= 1 else 1)
    weight_share = shape.parameters / (ranks if zero >= 3 else 1)
    gradient_share = shape.trainable / (ranks if zero >= 2 else 1)
    gathering = 0.0
    if zero >= 1:
        gathering += size * min(BUCKET_ELEMENTS, shape.trainable)
    if zero >= 3:
        gathering += size * (shape.largest + min(PREFETCH_ELEMENTS, shape.parameters))
    copied = config.reference.mode != "none" and not (frozen and config.reference.mode == "initial")
    tokens = row_tokens(config, ranks, workload)
    return RankMemory(
        weights=size * weight_share,
        gradients=4 * gradient_share,
        masters=0.0 if zero == 0 else MASTER * optimizer_share,
        optimizer=STATES[config.optimizer.name] * optimizer_share,
        ema=EMA * optimizer_share,
        reference=size * optimizer_share if copied else 0.0,
        gathering=gathering,
        activations=activation_bytes(config, shape, tokens),
        logits=3.0 * 4 * min(config.learner.logits_chunk, tokens) * shape.vocabulary,
        offloaded=config.learner.offload_optimizer,
    )


def row_tokens(config: RunConfig, ranks: int, workload: Workload | None) -> float:
    """Of the longest row that a rank computes: its share of a full batch may be less than a row holds."""
    full = config.learner.tokens_per_batch
    return min(full, fullest_batch_tokens(config, workload) / ranks) if workload else full


def activation_bytes(config: RunConfig, shape: ModelShape, tokens: float) -> float:
    """What one forward of a row of ``tokens`` tokens keeps for the backward.

    A block keeps its input, two norms' outputs and fp32 copies, queries, keys and values before and after rotation, the
    attention's output, and four tensors of the feed-forward part's width. With checkpointing, each keeps its input, and
    one block at a time is computed again.
    """
    size = dtype_bytes(config)
    attention = 3 * shape.heads * shape.head_size + 4 * shape.kv_heads * shape.head_size
    block = tokens * (size * (4 * shape.hidden + attention + 4 * shape.intermediate) + 2 * 4 * shape.hidden)
    if config.learner.activation_offload:
        return float(block)
    if config.model.gradient_checkpointing:
        return float(block + shape.layers * tokens * size * shape.hidden)
    return float(block * shape.layers)


def engine_memory(
    config: RunConfig, shape: ModelShape, workload: Workload, gpu_memory_bytes: float | None
) -> EngineMemory:
    """Of one engine.

    Args:
        gpu_memory_bytes: of one GPU; None on CPU.
    """
    generation, size = config.generation, dtype_bytes(config)
    parts = generation.tensor_parallel
    # With more parts than key heads, each part has one of its own.
    kv_heads = max(shape.kv_heads / parts, 1)
    per_token = 2.0 * shape.layers * kv_heads * shape.head_size * size
    weights = shape.parameters * size / parts
    logits = 2.0 * 4 * generation.max_concurrent_requests * shape.vocabulary
    if gpu_memory_bytes is None:
        reserve = logits + _step_bytes(config, shape, workload)
        cache = float(generation.kv_cache_bytes or CPU_KV_CACHE_BYTES)
    else:
        reserve = ENGINE_RESERVE_BYTES + logits
        room = gpu_memory_bytes * generation.gpu_memory_utilization - weights - reserve
        cache = float(generation.kv_cache_bytes or max(0.0, room))
    longest = workload.prompt + workload.prefix + workload.segment
    return EngineMemory(
        weights,
        reserve,
        cache,
        per_token,
        int(min(generation.max_concurrent_requests, cache / per_token // max(longest, 1.0))),
    )


def _step_bytes(config: RunConfig, shape: ModelShape, workload: Workload) -> float:
    """Of a CPU engine's largest step: the contexts of all its requests are computed at once, as at the start. A token
    has the residual, its norm, queries, the attention's output and three tensors of the feed-forward part's width."""
    tokens = min(BATCHED_TOKENS, config.generation.max_concurrent_requests * (workload.prompt + workload.prefix))
    return tokens * dtype_bytes(config) * (4 * shape.hidden + 3 * shape.intermediate)


def buffer_bytes(config: RunConfig, workload: Workload) -> float:
    """Of a full replay buffer, over all shards."""
    tokens = workload.prompt + workload.response + 2 * workload.segment
    return config.buffer.capacity * (PAIR_BYTES + 4 * tokens)


def checkpoint_bytes(config: RunConfig, shape: ModelShape, workload: Workload, ranks: int) -> float:
    """Of one checkpoint on disk: policy and EMA in the model's dtype, every rank's states, the buffer's pairs."""
    memory = rank_memory(config, shape, ranks)
    # Where nothing is sharded the masters are the weights, and every rank writes all.
    masters = memory.masters or MASTER * shape.trainable
    states = ranks * (masters + memory.optimizer + memory.ema + memory.reference)
    exported = 2 * shape.parameters * dtype_bytes(config)
    return exported + states + (buffer_bytes(config, workload) if config.method == "sapo" else 0.0)


def object_store_bytes(config: RunConfig, workload: Workload) -> float | None:
    """Of Ray's object store on each node: the dataset's token ids, and two batches on their way. None: rows unknown."""
    if workload.rows is None:
        return None
    batch = config.learner.batch_size * (PAIR_BYTES + 4 * (workload.row + 2 * workload.segment))
    return workload.rows * (4 * workload.row + 16) + 2 * batch


def host_bytes(
    config: RunConfig, shape: ModelShape, workload: Workload, ranks: int, actors: int, *, use_gpu: bool
) -> float:
    """Of a node with so many ranks and actors, the first rank among them.

    Every rank loads the whole model before it is sharded; the first one stages two versions of the EMA. A checkpoint
    that is written in the background is a copy of all states, and of policy and EMA on the first rank.
    """
    loaded = shape.parameters * dtype_bytes(config)
    per_rank = rank_host_bytes(config, shape, workload, use_gpu=use_gpu)
    per_actor = actor_host_bytes(config, shape, workload, use_gpu=use_gpu)
    staged = 2.0 * loaded + buffer_bytes(config, workload) if config.method == "sapo" else 0.0
    store = object_store_bytes(config, workload) or 0.0
    staged += 2.0 * loaded if config.checkpoint.background else 0.0
    return ranks * per_rank + actors * per_actor + staged + max(store, float(config.cluster.object_store_bytes))


def rank_host_bytes(config: RunConfig, shape: ModelShape, workload: Workload, *, use_gpu: bool) -> float:
    """Of one rank's process at its largest, without what it stages for the engines."""
    memory = rank_memory(config, shape, config.learner.ranks, workload)
    loaded = shape.parameters * dtype_bytes(config)
    copied = memory.states if config.checkpoint.background else 0.0
    at_work = copied + (memory.on_host if use_gpu else memory.total)
    held = max(at_work, loaded if use_gpu else loaded + memory.weights)
    return RANK_PROCESS_BYTES[use_gpu] + held


def actor_host_bytes(config: RunConfig, shape: ModelShape, workload: Workload, *, use_gpu: bool) -> float:
    """Of one actor's process, without the staged weights that it maps."""
    engine = 0.0 if use_gpu else engine_memory(config, shape, workload, None).total
    return ACTOR_PROCESS_BYTES[use_gpu] + engine
