"""Memory of a learner rank: measured on a small model, and what a large one needs by DeepSpeed's estimators.

    python -m benchmarks.memory [--shape 1024/256/64] [--pairs 4]

Measured: two ranks over gloo, 16.9 M Llama; one DPO step whose pairs have no cached reference. The columns count the
tensors that a rank holds between steps; the last one is the highest resident memory of its process beyond libraries,
the loading of the model included. Estimated: DeepSpeed's model states (weights, gradients, masters, Adam) without
activations, and beside them our EMA (fp32, sharded) and reference (bf16, sharded).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner import make_pairs
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

LARGE = {
    # parameters, those of the largest single module (embedding or head), GPUs
    "Mistral-7B on 8": (7_241_732_096, 131_072_000, 8),
    "Llama-3-8B on 8": (8_030_261_248, 525_336_576, 8),
    "Llama-3-8B on 4": (8_030_261_248, 525_336_576, 4),
    "Llama-3-8B on 2": (8_030_261_248, 525_336_576, 2),
}
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


def estimates() -> list[list[str]]:
    """GiB a GPU at ZeRO 2 and 3, with and without optimizer offload, by DeepSpeed's estimators."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    rows = []
    for name, (parameters, largest, gpus) in LARGE.items():
        for offload in (False, True):
            _, two = zero2(parameters, gpus, cpu_offload=offload)
            _, three, _ = zero3(parameters, largest, gpus, cpu_offload=offload, cpu_offload_params=False)
            ema, reference = 4 * parameters / gpus, 2 * parameters / gpus
            # Both live where the masters live.
            ours = 0 if offload else ema + reference
            cells = [two, three, two + ours, three + ours]
            rows.append(
                [
                    name,
                    "host" if offload else "GPU",
                    *(f"{c / 2**30:.1f}" for c in cells),
                    *(f"{c / 2**30:.1f}" for c in (ema, reference)),
                ]
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1024/256/64", help="prompt/response/segment in tokens")
    parser.add_argument("--pairs", type=int, default=4, help=f"pairs of the step, over {RANKS} ranks")
    options = parser.parse_args()
    measured, rows = {}, []
    for name, sections in CONFIGURATIONS.items():
        ranks = in_group(held, options.shape, options.pairs, sections=sections)
        measured[name] = {kind: max(rank[kind] for rank in ranks) for kind in ranks[0]}
        rows.append([name, *(f"{measured[name][kind]:.1f}" for kind in KINDS), f"{measured[name]['peak_mb']:.0f}"])
    print(f"\nMB a rank, {RANKS} ranks, prompt/response/segment {options.shape}, {options.pairs} pairs a step")
    print(table_of(["", *KINDS, "peak"], rows))
    estimated = estimates()
    head = ["", "optimizer on", "ZeRO 2", "ZeRO 3", "ZeRO 2 + ours", "ZeRO 3 + ours", "EMA", "reference"]
    print("\nGiB a GPU without activations, bf16 with Adam, estimated")
    print(table_of(head, estimated))
    settings = {"shape": options.shape, "pairs": options.pairs, "torch": torch.__version__}
    results = {"measured_mb": measured, "estimated_gib": [dict(zip(head, row, strict=True)) for row in estimated]}
    save("memory", {"machine": machine(), **settings, **results})


if __name__ == "__main__":
    main()
