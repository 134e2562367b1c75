"""A preference step, forward and backward, in bf16: ours, ours with the prompt alone shared, and TRL's DPOTrainer.

Peers: TRL with the head that it takes on a GPU (fused with the loss where it has one). A trainer that shares prefixes
as arXiv 2410.20305 does: the prompt is computed once, and both whole responses behind it. That is our own forward with
the cut at the response's first token, on the same kernels.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.gpu.scale import ARCHITECTURES, Figure, Scale, peak_of
from benchmarks.learner import Step, make_pairs, ours, trl_dpo
from contracts.pair import PreferencePair

CASES: dict[str, Callable[[PreTrainedModel, list[PreferencePair]], Step]] = {
    "shared": lambda model, pairs: ours(model, pairs, "shared", "dpo"),
    "prompt alone shared": lambda model, pairs: ours(model, [whole(pair) for pair in pairs], "shared", "dpo"),
    "packed, not shared": lambda model, pairs: ours(model, pairs, "packed", "dpo"),
    "TRL, precomputed reference": lambda model, pairs: trl_dpo(model, pairs, online=False),
}


def whole(pair: PreferencePair) -> PreferencePair:
    """The same two responses, as a pair whose segment is all of them."""
    rejected = np.asarray(pair.rejected, np.int32)
    return dataclasses.replace(pair, start=0, end=len(pair.chosen), replacement=rejected, suffix_kept=False)


def measure(scale: Scale) -> Iterator[Figure]:
    """One figure a case."""
    architecture = ARCHITECTURES[scale.learner]
    pairs = make_pairs(scale.pair_shape, scale.pairs, vocabulary=architecture.vocabulary)
    for name, case in CASES.items():
        yield _measure(scale, name, case, pairs)


def _measure(
    scale: Scale,
    name: str,
    case: Callable[[PreTrainedModel, list[PreferencePair]], Step],
    pairs: list[PreferencePair],
) -> Figure:
    cuda = scale.device == "cuda"
    shape = f"{scale.learner}, {scale.pair_shape}"
    try:
        model = _model(scale)
        step = case(model, pairs)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(scale.rounds + 1):
            started = time.perf_counter()
            loss, tokens = step()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds[1:])
        peak = peak_of(torch.cuda.get_device_name()) if cuda else None
        parameters = sum(p.numel() for p in model.parameters())
        return Figure(
            "learner",
            name,
            shape,
            tokens_per_s=tokens / median,
            pairs_per_s=len(pairs) / median,
            share_of_peak=6 * parameters * tokens / median / peak if peak else None,
            peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
            seconds=median,
            note=f"{tokens} tokens, loss {loss:.3f}",
        )
    except torch.OutOfMemoryError as error:
        return Figure("learner", name, shape, note=f"out of memory: {str(error).splitlines()[0]}")
    finally:
        model = step = None  # type: ignore[assignment]  # gone before the next case
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()


def _model(scale: Scale) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, **ARCHITECTURES[scale.learner].changes())
    with torch.device(scale.device):
        model = LlamaForCausalLM(config).to(getattr(torch, scale.dtype)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
