"""Compares the run's forward with the two-sequence forward on a real pair, before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from contracts.errors import UserError
from contracts.pair import REGIONS, PreferencePair
from learner.model import attention
from learner.model.forward import causal_model, token_scores
from learner.model.packing import Mode, pack

TOLERANCE_NATS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Mean |difference| of many tokens' log-probabilities: rounding stays below, a lost prefix or window well above."""
TOKENS = 1024
"""Most tokens of each half of the pair that is compared: the two-sequence forward is eager attention, whose time and
memory grow with their square."""
ONE_ROW = 1 << 40
"""A budget of tokens that puts all pairs into one batch."""
PAST_WINDOW = 256
"""Tokens past a sliding window that are compared too, so that a lost window is seen."""


def tolerance_nats(dtype: torch.dtype, tokens: int) -> float:
    """Largest mean |difference| that is allowed over a region of ``tokens`` tokens.

    A token's |difference| by rounding is close to exponentially distributed (SmolLM2-135M in bfloat16: mean 0.052, 99 %
    0.23, largest of a thousand 0.40). The mean of ``n`` such stays below the factor here, times its expectation, in all
    but some 1e-5 of cases, for every ``n``.
    """
    return TOLERANCE_NATS.get(dtype, TOLERANCE_NATS[torch.bfloat16]) * (1 + 4.5 / math.sqrt(tokens) + 6 / tokens)


@torch.no_grad()
def check_forward(
    model: nn.Module, pairs: Sequence[PreferencePair], mode: Mode, chunk: int, device: torch.device
) -> float:
    """Score a pair as the run will, behind another in the same row, and once more by the model's own forward of each
    half alone. What leaks between neighbours is seen too.

    The pair is the longest of ``pairs`` whose halves are within ``longest_half``; where all are over it, it is the
    shortest, cut to that. Makes one forward as the run does and two of one sequence on every rank, whatever the pairs:
    under ZeRO-3 the ranks keep step.

    Args:
        model: as for ``learner.model.forward.score``.
        pairs: one at least.

    Returns:
        The largest mean difference of a region's tokens, in nats.

    Raises:
        UserError: a region, or the pair as a whole, is farther off than ``tolerance_nats`` allows for its length.
    """
    causal = causal_model(model)
    compared = choose_pairs(pairs, longest_half(causal.config))
    (batch,) = pack(compared, ONE_ROW, mode)
    batch = batch.to(device)
    was_training = model.training
    model.eval()
    try:
        ours = token_scores(model, batch, chunk)
        theirs = _two_sequence_logps(model, compared[-1], device)
    finally:
        model.train(was_training)
    first = (len(compared) - 1) * len(REGIONS)
    off = {
        name.replace("_", " "): (ours[batch.owners == first + region] - theirs[region]).abs()
        for region, name in enumerate(REGIONS)
        if (batch.owners == first + region).any()
    }
    for where, tokens in {**off, "pair as a whole": torch.cat(list(off.values()))}.items():
        mean, allowed = tokens.mean().item(), tolerance_nats(causal.dtype, len(tokens))
        if not mean <= allowed:  # a NaN is not
            raise UserError(
                f"learner.forward {mode}: log-probabilities of {causal.config.model_type} are {mean:.3g} nats per "
                f"token off the two-sequence forward in the {where} ({len(tokens)} tokens, allowed {allowed:.3g}); set "
                "learner.forward: padded"
            )
    return max(tokens.mean().item() for tokens in off.values())


def longest_half(config: PreTrainedConfig) -> int:
    """Tokens of prompt and response that are compared at most: ``TOKENS``, or what it takes to leave the model's
    sliding window."""
    return max(TOKENS, (getattr(config, "sliding_window", None) or 0) + PAST_WINDOW)


def choose_pairs(pairs: Sequence[PreferencePair], longest: int) -> list[PreferencePair]:
    """A neighbour, if there is a second pair, and the pair that is compared; no half over ``longest`` tokens."""
    by_length = sorted(pairs, key=_half_tokens)
    within = [pair for pair in by_length if _half_tokens(pair) <= longest]
    compared = within[-1] if within else by_length[0]
    neighbours = [pair for pair in by_length if pair is not compared][:1]
    return [shortened(pair, longest) for pair in (*neighbours, compared)]


def shortened(pair: PreferencePair, longest: int) -> PreferencePair:
    """The tokens around the cut, no half over ``longest``: half of that for prompt and prefix, whose last tokens are
    kept, a quarter each for segment (or replacement) and suffix, whose first are. A pair within it stays as it is."""
    if _half_tokens(pair) <= longest:
        return pair
    before, behind = longest // 2, longest // 4
    prefix = pair.prefix[max(0, pair.start - before) :]
    prompt = pair.prompt[max(0, len(pair.prompt) - (before - len(prefix))) :]
    segment = pair.segment[:behind]
    return replace(
        pair,
        prompt=prompt,
        chosen=np.concatenate((prefix, segment, pair.suffix[:behind])),
        start=len(prefix),
        end=len(prefix) + len(segment),
        replacement=pair.replacement[:behind],
    )


def _half_tokens(pair: PreferencePair) -> int:
    """Of prompt and the longer response."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


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
