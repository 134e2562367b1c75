"""Memory of a learner rank: measured on a small model beside the formulas, and what large ones need by the formulas.

    python -m benchmarks.memory [--shape 1024/256/64] [--pairs 4] [--computed]

Measured: two ranks over gloo, 16.9 M Llama; one DPO step whose pairs have no cached reference. The columns count the
tensors that a rank holds between steps; the last one is the highest resident memory of its process beyond libraries,
the loading of the model on rank 0 included. Computed: benchmarks/memory_model.py. --computed prints that alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner import VOCABULARY, make_pairs
from benchmarks.memory_model import (
    DIGEST_BYTES,
    GIB,
    LLAMA_8B,
    LLAMA_70B,
    ON_HOST,
    Architecture,
    head_bytes,
    host_bytes,
    longest_row,
    mask_bytes,
    states,
    token_bytes,
    transient_bytes,
)
from benchmarks.ranks import RANKS, in_group, step
from benchmarks.report import machine, save, table_of
from contracts.pair import REGIONS, ReferenceScore
from learner.config import LoraConfig
from learner.rank import LearnerRank

CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32, ZeRO 0": {"learner": {"zero_stage": 0}},
    "fp32, ZeRO 2": {"learner": {"zero_stage": 2}},
    "fp32, ZeRO 3": {"learner": {"zero_stage": 3}},
    "bf16, ZeRO 2": {"model": {"dtype": "bfloat16"}, "learner": {"zero_stage": 2}},
    "bf16, ZeRO 3": {"model": {"dtype": "bfloat16"}, "learner": {"zero_stage": 3}},
    "bf16, ZeRO 3, checkpointed": {
        "model": {"dtype": "bfloat16", "gradient_checkpointing": True},
        "learner": {"zero_stage": 3},
    },
    "bf16, ZeRO 3, LoRA r 16": {
        "model": {"dtype": "bfloat16", "lora": LoraConfig(), "gradient_checkpointing": True},
        "learner": {"zero_stage": 3},
    },
}

COMPUTED = {"fp32, ZeRO 0": (0, 4), "fp32, ZeRO 2": (2, 4), "fp32, ZeRO 3": (3, 4), "bf16, ZeRO 2": (2, 2)} | {
    "bf16, ZeRO 3": (3, 2)
}
"""ZeRO stage and bytes of a weight."""
SMALL = Architecture("Llama 16.9 M", 6, 384, 1024, 6, 6, 64, VOCABULARY)
LARGE = [(LLAMA_8B, 2), (LLAMA_8B, 4), (LLAMA_8B, 8), (LLAMA_70B, 16), (LLAMA_70B, 32)]
"""On how many GPUs."""
CARD_BYTES = 80 * GIB
KINDS = ("weights", "masters", "optimizer", "ema", "reference")


def held(learner: LearnerRank, shape: str, count: int) -> dict[str, Any]:
    """Bytes of this rank by kind, after a step; what two kinds share counts for the first."""
    # Version -1: no reference has it, so the step computes one.
    stale = ReferenceScore(-1, np.zeros(len(REGIONS), np.float32))
    step(learner, [pair.with_reference(stale) for pair in make_pairs(shape, count)])
    states = [v for state in learner.shards.optimizer_states() for v in state.values() if isinstance(v, Tensor)]
    tensors = {
        "weights": [getattr(p, "ds_tensor", p) for p in learner.module.parameters()],
        "masters": learner.shards.masters,
        "ema": learner.ema.values,
        "reference": learner.reference.values,
    }
    seen: set[int] = set()
    sizes: dict[str, float] = {"optimizer": sum(v.numel() * v.element_size() for v in states)}
    for kind, values in tensors.items():
        fresh = [v for v in values if v.data_ptr() not in seen]
        seen |= {v.data_ptr() for v in fresh}
        sizes[kind] = sum(v.numel() * v.element_size() for v in fresh)
    return {kind: sizes[kind] / 2**20 for kind in KINDS}


def state_rows() -> list[list[str]]:
    """GiB of one GPU under ZeRO 3 in bf16, and of its share of the host where the optimizer is there."""
    rows = []
    for model, gpus in LARGE:
        kinds = states(model, gpus, 3)
        buffers = sum(transient_bytes(model, 3).values())
        host = sum(size for kind, size in kinds.items() if kind in ON_HOST)
        cells = [*kinds.values(), buffers, sum(kinds.values()) + buffers, kinds["weights"] + buffers, host]
        rows.append([f"{model.name}, {gpus} GPUs", *(f"{cell / GIB:.1f}" for cell in cells)])
    return rows


def cost_rows() -> list[list[str]]:
    """What comes and goes, or is on the host, for both large models."""
    rows = []
    for name, cost in {
        "a token of a row: inputs of all layers, checkpointed": lambda m: token_bytes(m)["kept of all layers"],
        "a token of a row: one layer at work": lambda m: token_bytes(m)["one layer at work"],
        "head: a chunk of 1,024 tokens": lambda m: head_bytes(m, 1024),
        "FlexAttention's blocks of 32 k tokens": lambda m: mask_bytes(1 << 15),
        "digest of a weight": lambda m: DIGEST_BYTES,
        **{
            f"host: {what}": lambda m, what=what: host_bytes(m, 8, overlap=True)[what]  # type: ignore[misc]
            for what in host_bytes(LLAMA_8B, 8, overlap=True)
        },
    }.items():
        rows.append([name, *(_amount(cost(model)) for model in (LLAMA_8B, LLAMA_70B))])
    return rows


def length_rows() -> list[list[str]]:
    """Thousands of tokens of the longest row on cards of CARD_BYTES."""
    return [
        [
            f"{model.name}, {gpus} GPUs",
            *(
                f"{tokens // 1000} k" if tokens else "does not fit"
                for offload in (False, True)
                for tokens in longest_row(model, gpus, CARD_BYTES, offload=offload).values()
            ),
        ]
        for model, gpus in LARGE
    ]


def _amount(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.2f} MiB"


def print_computed() -> dict[str, list[list[str]]]:
    """Print the tables of the formulas, and return their rows."""
    tables = {"states": state_rows(), "costs": cost_rows(), "longest row": length_rows()}
    print("\nGiB a GPU, bf16, ZeRO 3, AdamW, computed")
    head = ["", *states(LLAMA_8B, 8, 3), "buffers", "all", "optimizer on host", "there"]
    print(table_of(head, tables["states"]))
    print("\nComputed")
    print(table_of(["", LLAMA_8B.name, LLAMA_70B.name], tables["costs"]))
    print(f"\nTokens of the longest row on cards of {CARD_BYTES // GIB} GiB, computed")
    lengths = longest_row(LLAMA_8B, 8, CARD_BYTES)
    print(table_of(["", *lengths, *(f"{name}, optimizer on host" for name in lengths)], tables["longest row"]))
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1024/256/64", help="prompt/response/segment in tokens")
    parser.add_argument("--pairs", type=int, default=4, help=f"pairs of the step, over {RANKS} ranks")
    parser.add_argument("--computed", action="store_true", help="print the formulas' tables alone")
    options = parser.parse_args()
    if options.computed:
        print_computed()
        return
    measured, rows = {}, []
    for name, sections in CONFIGURATIONS.items():
        ranks = in_group(held, options.shape, options.pairs, sections=sections)
        measured[name] = {kind: max(rank[kind] for rank in ranks) for kind in ranks[0]}
        rows.append([name, *(f"{measured[name][kind]:.1f}" for kind in KINDS), f"{measured[name]['peak_mb']:.0f}"])
        if name in COMPUTED:
            stage, width = COMPUTED[name]
            by_formula = states(SMALL, RANKS, stage, weights=width)
            rows.append(["  computed", *(f"{by_formula[kind] / 2**20:.1f}" for kind in KINDS), ""])
    print(f"\nMB a rank, {RANKS} ranks, prompt/response/segment {options.shape}, {options.pairs} pairs a step")
    print(table_of(["", *KINDS, "peak"], rows))
    settings = {"shape": options.shape, "pairs": options.pairs, "torch": torch.__version__}
    save("memory", {"machine": machine(), **settings, "measured_mb": measured, "computed": print_computed()})


if __name__ == "__main__":
    main()
