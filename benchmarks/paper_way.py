"""The peer of benchmarks/pipeline.py: SAPO in one process, as the paper's code does it.

Each step: the EMA continues the batch's prefixes with transformers' ``generate()`` while everyone waits, the
two halves of each pair are padded and run as sequences of their own, for DPO by the reference too; then one optimizer
step and a per-parameter EMA. Same plan, same cuts, same model, same data, same hyperparameters as ours.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, set_seed

from actors.plan import Plan
from actors.splice import splice
from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from contracts.pair import PreferencePair
from learner.config import ObjectiveConfig


def train(config: RunConfig, table: TokenTable, eos: int, steps: int) -> list[float]:
    """Run ``steps`` optimizer steps; returns the seconds of each."""
    set_seed(config.seed)
    policy = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    ema = copy.deepcopy(policy).eval()
    reference = copy.deepcopy(policy).eval() if config.objective.name == "dpo" else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.optimizer.lr, weight_decay=0.0)
    generation = config.generation
    plan = Plan(config.seed, table.response_lengths, generation.segment_length, generation.responses_per_prompt)
    buffer: deque[list] = deque(maxlen=config.buffer.capacity)
    draw = np.random.default_rng(config.seed)
    seconds, index, size = [], 0, config.learner.batch_size
    for _ in range(steps):
        started = time.monotonic()
        while True:
            for pair in _generate(ema, table, plan, range(index, index + size), eos, config):
                buffer.append([pair, 0])
            index += size
            if len(buffer) >= size:
                break
        weights = np.array([1.0 / (draws + 1) for _, draws in buffer])
        chosen = draw.choice(len(buffer), size, replace=False, p=weights / weights.sum())
        batch = []
        for position in chosen:
            buffer[position][1] += 1
            batch.append(buffer[position][0])
        loss = _loss(policy, reference, batch, config.objective)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, new in zip(ema.parameters(), policy.parameters(), strict=True):
                kept.mul_(config.ema.decay).add_(new, alpha=1 - config.ema.decay)
        seconds.append(time.monotonic() - started)
    return seconds


@torch.no_grad()
def _generate(
    model: Any, table: TokenTable, plan: Plan, indices: range, eos: int, config: RunConfig
) -> list[PreferencePair]:
    items = [plan.item(i) for i in indices]
    rows = [table[item.row] for item in items]
    contexts = [np.concatenate((row.prompt, row.response[: i.start])) for row, i in zip(rows, items, strict=True)]
    width = max(map(len, contexts))
    ids, mask = np.zeros((2, len(items), width), np.int64)
    for line, context in enumerate(contexts):
        ids[line, width - len(context) :] = context
        mask[line, width - len(context) :] = 1
    generation = config.generation
    generating: Any = model  # transformers' annotation of its own mixin does not fit its models
    out = generating.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        do_sample=True,
        eos_token_id=eos,
        pad_token_id=0,
        max_new_tokens=max(item.end - item.start for item in items),
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
    )
    pairs = []
    for row, item, tokens in zip(rows, items, out[:, width:].tolist(), strict=True):
        replacement = tokens[: item.end - item.start]
        replacement = replacement[: replacement.index(eos) + 1] if eos in replacement else replacement
        _, pair = splice(row, item, replacement, {eos}, generation.after_eos)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _loss(
    policy: torch.nn.Module, reference: torch.nn.Module | None, pairs: list[PreferencePair], objective: ObjectiveConfig
) -> torch.Tensor:
    """DPO against ``reference``, or ORPO without one, over padded sequences of both halves."""
    sequences = [(pair.prompt, half) for pair in pairs for half in (pair.chosen, pair.rejected)]
    width = max(len(prompt) + len(half) for prompt, half in sequences)
    filled = np.zeros((3, len(sequences), width), np.int64)
    for line, (prompt, half) in enumerate(sequences):
        filled[0, line, : len(prompt) + len(half)] = np.concatenate((prompt, half))
        filled[1, line, : len(prompt) + len(half)] = 1
        filled[2, line, len(prompt) : len(prompt) + len(half)] = 1
    ids, attention, scored = torch.from_numpy(filled)

    def logps(model: torch.nn.Module) -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
        token_logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return (token_logps * scored[:, 1:]).sum(-1)

    if reference is not None:
        with torch.no_grad():
            frozen = logps(reference)
        ratios = logps(policy) - frozen
        return -F.logsigmoid(objective.beta * (ratios[0::2] - ratios[1::2])).mean()
    means = logps(policy) / scored.sum(-1)
    log_odds = means - torch.log1p(-torch.exp(means))
    return (-means[0::2] - objective.orpo_lambda * F.logsigmoid(log_odds[0::2] - log_odds[1::2])).mean()
