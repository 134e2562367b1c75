"""Compares the run's forward with the two-sequence forward on real pairs, before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import UserError
from contracts.pair import REGIONS, PreferencePair
from learner.model import attention
from learner.model.forward import causal_model, token_scores
from learner.model.packing import Mode, PackedBatch

TOLERANCE_NATS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Mean |difference| of a token's log-probability: rounding stays well below, a lost prefix or window well above."""


@torch.no_grad()
def check_forward(
    model: nn.Module, pairs: Sequence[PreferencePair], batch: PackedBatch, mode: Mode, chunk: int
) -> float:
    """Score ``batch`` as the run will, and its last pair once more by the model's own forward of each half alone.

    The last pair has all others of its row before it, so what leaks between neighbours is seen too. Makes one
    packed forward and two of one sequence on every rank, whatever the batch: under ZeRO-3 the ranks keep step.

    Args:
        model: as for ``learner.model.forward.score``.
        pairs: the pairs that ``batch`` was packed from.

    Returns:
        The largest mean difference of a region's tokens, in nats.

    Raises:
        UserError: it is over the tolerance of the model's dtype.
    """
    causal = causal_model(model)
    was_training = model.training
    model.eval()
    try:
        ours = token_scores(model, batch, chunk)
        theirs = _two_sequence_logps(model, pairs[batch.pairs[-1]], batch.input_ids.device)
    finally:
        model.train(was_training)
    local = len(batch.pairs) - 1
    worst, where = 0.0, ""
    for region, name in enumerate(REGIONS):
        of_region = batch.owners == local * len(REGIONS) + region
        if of_region.any():
            off = (ours[of_region] - theirs[region]).abs().mean().item()
            if not off <= worst:  # a NaN counts as worst
                worst, where = off, name
    tolerance = TOLERANCE_NATS.get(causal.dtype, TOLERANCE_NATS[torch.bfloat16])
    if not worst <= tolerance:
        raise UserError(
            f"learner.forward {mode}: log-probabilities of {causal.config.model_type} are {worst:.3g} nats per token "
            f"off the two-sequence forward in the {where.replace('_', ' ')} (allowed {tolerance:g}); set "
            "learner.forward: padded"
        )
    return worst


def _two_sequence_logps(model: nn.Module, pair: PreferencePair, device: torch.device) -> list[Tensor]:
    """[tokens] of each region, by transformers' own forward of one half at a time."""
    causal = causal_model(model)
    before = causal.config._attn_implementation
    # Eager attention knows every option of a model (SDPA drops soft caps); without it, what the model had.
    if before == attention.NAME:
        causal.set_attn_implementation("eager")
    try:
        chosen = _token_logps(model, pair.prompt, pair.chosen, device)
        rejected = _token_logps(model, pair.prompt, pair.rejected, device)
    finally:
        causal.set_attn_implementation(before)
    first = 0 if len(pair.prompt) else 1  # the very first token has no predictor
    rejected_end = pair.start + len(pair.replacement)
    return [
        chosen[first : pair.start],
        chosen[max(pair.start, first) : pair.end],
        chosen[max(pair.end, first) :],
        rejected[max(pair.start, first) : rejected_end],
        rejected[max(rejected_end, first) :],
    ]


def _token_logps(model: nn.Module, prompt: np.ndarray, response: np.ndarray, device: torch.device) -> Tensor:
    """float32 [response tokens]; 0 for a token without anything before it."""
    ids = torch.from_numpy(np.concatenate((prompt, response)).astype(np.int64)).to(device)[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    predicted = logits[0, max(len(prompt) - 1, 0) : -1].float()
    targets = ids[0, max(len(prompt), 1) :]
    logps = torch.log_softmax(predicted, -1).gather(-1, targets[:, None])[:, 0]
    return logps if len(prompt) else torch.cat((logps.new_zeros(1), logps))
