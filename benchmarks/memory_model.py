"""What a run of a large model needs in memory, by formulas: nothing here is measured.

benchmarks/memory.py measures small models and prints what these formulas give beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from learner.model.attention_gpu import BLOCK

GIB = 1 << 30
FP32, BF16 = 4, 2
"""Bytes."""
LOGITS_BYTES = {True: 2 * BF16, False: BF16 + 2 * FP32}
"""Of a logit in a chunk of the head, by whether it is on a GPU: logits and gradients, both bf16, with nothing between
them; else the logits, their fp32 values and one fp32 tensor that is made of these."""
DIGEST_BYTES = 8 << 22
"""Products of a chunk of words (actors/weights/digest.py)."""
LIVE_PARAMETERS = 10**9
"""What ZeRO 3 keeps gathered at most, of DeepSpeed's ``stage3_max_live_parameters``."""
BUCKET = 5 * 10**8
"""Gradients that are reduced together, of DeepSpeed's ``reduce_bucket_size``."""
USABLE = 0.9
"""Share of a card that tensors get; the rest is CUDA's, NCCL's and lost between blocks."""


@dataclass(frozen=True)
class Architecture:
    """A Llama."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @property
    def embedding(self) -> int:
        """Parameters."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        return (1 if self.tied else 2) * self.embedding + self.layers * self.layer + self.hidden


LLAMA_8B = Architecture("Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_70B = Architecture("Llama-3-70B", 80, 8192, 28672, 64, 8, 128, 128256)


def states(model: Architecture, ranks: int, zero_stage: int, *, weights: int = BF16) -> dict[str, float]:
    """Bytes of one rank by kind, with AdamW and a reference. Gradients are those that are summed, fp32.

    Args:
        weights: bytes of a weight; in fp32 under ZeRO 0 the masters are the weights.
    """
    p = model.parameters
    sharded = p if zero_stage == 0 else p / ranks
    return {
        "weights": weights * (p / ranks if zero_stage == 3 else p),
        "masters": 0.0 if zero_stage == 0 and weights == FP32 else FP32 * sharded,
        "optimizer": 2 * FP32 * sharded,
        "ema": FP32 * sharded,
        "reference": weights * sharded,
        "gradients": FP32 * (sharded if zero_stage >= 2 else p),
    }


ON_HOST = ("masters", "optimizer", "ema", "reference", "gradients")
"""Kinds that ``learner.offload_optimizer`` moves to the host."""
SAVED = ("masters", "optimizer", "ema", "reference")
"""Kinds that a checkpoint has of each rank, and that are copied to be written while training goes on."""


def transient_bytes(model: Architecture, zero_stage: int) -> dict[str, float]:
    """Bytes of one GPU that come and go, whatever the length of a row: DeepSpeed's buffers at their largest."""
    gathered = min(model.parameters, max(LIVE_PARAMETERS, model.layer, model.embedding)) if zero_stage == 3 else 0
    return {"gathered weights": BF16 * gathered, "gradient bucket": BF16 * min(BUCKET, model.parameters)}


def token_bytes(model: Architecture, *, width: int = BF16, fp32_norms: bool = True) -> dict[str, float]:
    """Bytes of one GPU for each token of a row, with gradient checkpointing.

    Args:
        width: bytes of an activation.
        fp32_norms: the norms compute in fp32 beside it, as Llama's do; no difference where ``width`` is fp32.
    """
    h, i = model.hidden, model.intermediate
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    norms = 2 * h * (2 * FP32 + width) if fp32_norms else 2 * h * 3 * width
    # Of one layer, computed again for its backward: projections, rotated queries and keys, keys and values gathered for
    # the branches (about one and a half times), attention's and the MLP's results, and the MLP's gradients.
    attention = width * (3 * queries + 3 * keys + 3 * keys + 2 * h)
    mlp = width * (4 * i + 2 * i + 2 * h)
    return {"kept of all layers": width * model.layers * h, "one layer at work": norms + attention + mlp}


def head_bytes(model: Architecture, chunk: int, *, on_gpu: bool = True) -> float:
    """Bytes of ``chunk`` tokens' logits and gradients: what the vocabulary costs beside the head's weights."""
    return float(chunk * model.vocabulary * LOGITS_BYTES[on_gpu])


def mask_bytes(tokens: int) -> float:
    """Bytes of FlexAttention's blocks of a row: four tables of blocks x blocks in int32, and four numbers a token."""
    return 4 * 4 * math.ceil(tokens / BLOCK) ** 2 + 4 * 8 * tokens


def host_bytes(model: Architecture, ranks: int, *, overlap: bool) -> dict[str, float]:
    """Bytes of host memory, of all ranks together, by what takes them.

    A checkpoint in the run's dtype is mapped and not read: then loading takes pages of the file alone, which the system
    takes back when it needs them.
    """
    weights = BF16 * model.parameters
    return {
        "loading (rank 0, until it trains)": weights,
        "staged versions (rank 0)": weights * (2 if overlap else 1),
        "checkpoint being written, policy and EMA (rank 0)": 2 * weights,
        "checkpoint being written, states (all ranks)": sum(
            size * ranks for kind, size in states(model, ranks, 3).items() if kind in SAVED
        ),
        "offloaded states (all ranks)": sum(
            size * ranks for kind, size in states(model, ranks, 3).items() if kind in ON_HOST
        ),
    }


def longest_row(
    model: Architecture, ranks: int, card_bytes: float, *, chunk: int = 1024, offload: bool = False
) -> dict[str, int]:
    """Tokens of the longest row that fits a card with ZeRO 3 and checkpointing, and with ``activation_offload`` too; 0
    where not even the states fit."""
    held = {k: v for k, v in states(model, ranks, 3).items() if not (offload and k in ON_HOST)}
    fixed = sum(held.values()) + sum(transient_bytes(model, 3).values()) + head_bytes(model, chunk)
    left = max(0.0, USABLE * card_bytes - fixed)
    kept, working = token_bytes(model).values()
    return {"checkpointing": int(left / (kept + working)), "and activation_offload": int(left / working)}
