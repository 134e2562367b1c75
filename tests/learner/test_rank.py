"""A group of DeepSpeed ranks computes what one plain process would, under every ZeRO stage."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from buffer.record import PreferencePair
from learner.config import EmaConfig, LearnerConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, ReferenceConfig

pytestmark = pytest.mark.slow

STEPS, BATCH = 20, 6
DECAY, LR, BETA = 0.5, 1e-3, 0.1


def make_pairs(seed: int, count: int = BATCH) -> list[PreferencePair]:
    draw = np.random.default_rng(seed)

    def tokens(n: int) -> np.ndarray:
        return draw.integers(3, 128, n).astype(np.int32)

    pairs = []
    for index in range(count):
        a, b, c = draw.integers(0, 12, 3)
        chosen = tokens(a + b + c + 1)
        replacement = tokens(int(draw.integers(1, 12)))
        pairs.append(PreferencePair(tokens(8), chosen, int(a), int(a + b), replacement, bool(index % 2), index=index))
    return pairs


def sections(folder: str, **changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "model": ModelConfig(path=folder, dtype="float32"),
        "objective": ObjectiveConfig(name="dpo", beta=BETA),
        "reference": ReferenceConfig(mode="initial"),
        "optimizer": OptimizerConfig(lr=LR, schedule="constant", warmup_steps=0, max_grad_norm=1.0),
        "learner": LearnerConfig(ranks=2, batch_size=BATCH, tokens_per_batch=1024, self_check=True),
        "ema": EmaConfig(decay=DECAY),
        "max_length": 256, "total_steps": STEPS, "seed": 0,
    }  # fmt: skip
    for name, change in changes.items():
        parts[name] = parts[name].model_copy(update=change)
    return parts


def in_group(world: int, body: Any, *arguments: Any) -> None:
    """Run ``body(rank, world, port, *arguments)`` in ``world`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_enter, (body, world, port, arguments), nprocs=world)


def _enter(rank: int, body: Any, world: int, port: int, arguments: tuple) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    body(rank, world, port, *arguments)


def start(rank: int, world: int, port: int, parts: dict[str, Any]) -> Any:
    from learner.rank import LearnerRank

    learner = LearnerRank(rank, world, **parts)
    learner.rendezvous("127.0.0.1", port)
    learner.setup()
    return learner


def shares(pairs: list[PreferencePair], world: int) -> list[list[PreferencePair]]:
    from learner.packing import split_by_cost

    return [[pairs[i] for i in share] for share in split_by_cost(pairs, world)]


def train(rank: int, world: int, port: int, parts: dict[str, Any], out: str, steps: int) -> None:
    learner = start(rank, world, port, parts)
    history = []
    for step in range(steps):
        pairs = make_pairs(step)
        history.append(learner.step(shares(pairs, world)[rank], len(pairs)).metrics)
    learner.export(out)
    if rank == 0:
        torch.save(history, Path(out) / "history.pt")
    learner.shutdown()


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= tolerance, name


def plain_logps(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate((prompt, response)).astype(np.int64))[None]
    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logps[len(prompt) - 1 :].sum()


@pytest.fixture(scope="module")
def oracle(tiny_llama: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[float]]:
    """(policy, average, losses) of one plain PyTorch process: two sequences a pair, AdamW, a hand-written EMA."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    frozen, average = copy.deepcopy(policy).eval(), copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        loss = torch.zeros(())
        for pair in make_pairs(step):
            ratio = [
                plain_logps(policy, pair.prompt, half) - plain_logps(frozen, pair.prompt, half).detach()
                for half in (pair.chosen, pair.rejected)
            ]
            loss = loss - torch.nn.functional.logsigmoid(BETA * (ratio[0] - ratio[1])) / BATCH
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            for kept, new in zip(average.parameters(), policy.parameters(), strict=True):
                kept.copy_(DECAY * kept + (1 - DECAY) * new)
    return policy.state_dict(), average.state_dict(), losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_equal_one_plain_process_over_20_steps(stage, oracle, tiny_llama, tmp_path):
    in_group(2, train, sections(tiny_llama, learner={"zero_stage": stage}), str(tmp_path), STEPS)
    policy, average, losses = oracle
    ours = [m["loss"] for m in torch.load(tmp_path / "history.pt")]
    np.testing.assert_allclose(ours, losses, atol=2e-4)
    close(weights(tmp_path / "policy"), policy, 2e-4)
    close(weights(tmp_path / "ema"), average, 2e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_update_does_not_depend_on_packing_or_ranks(stage, tiny_llama, tmp_path):
    results = []
    for world, tokens in ((1, 1024), (1, 40), (2, 40)):
        out = tmp_path / f"{world}-{tokens}"
        out.mkdir()
        parts = sections(tiny_llama, learner={"zero_stage": stage, "tokens_per_batch": tokens, "ranks": world})
        in_group(world, train, parts, str(out), 2)
        results.append(weights(out / "policy"))
    # AdamW's first steps are lr in size whatever the gradient's, so rounding of near-zero gradients shows enlarged.
    close(results[0], results[1], 0.02 * LR)
    close(results[0], results[2], 0.02 * LR)


def resume(rank: int, world: int, port: int, parts: dict[str, Any], out: str, interrupted: bool) -> None:
    learner = start(rank, world, port, parts)

    def steps(first: int, last: int) -> None:
        for step in range(first, last):
            pairs = make_pairs(step)
            learner.step(shares(pairs, world)[rank], len(pairs))

    if interrupted:
        learner.load(f"{out}/saved")
    else:
        steps(0, 3)
        learner.save(f"{out}/saved")
    steps(3, 6)
    learner.export(f"{out}/{'resumed' if interrupted else 'straight'}")
    learner.shutdown()


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (2, "bfloat16"), (3, "float32")])
def test_resume_gives_the_same_weights_bit_for_bit(stage, dtype, tiny_llama, tmp_path):
    parts = sections(
        tiny_llama, learner={"zero_stage": stage}, model={"dtype": dtype}, reference={"mode": "ema", "interval": 2}
    )
    in_group(2, resume, parts, str(tmp_path), False)
    in_group(2, resume, parts, str(tmp_path), True)
    for which in ("policy", "ema"):
        straight, resumed = (weights(tmp_path / run / which) for run in ("straight", "resumed"))
        close(straight, resumed, 0.0)


def hold(rank: int, world: int, port: int, parts: dict[str, Any]) -> None:
    import torch.distributed as dist

    from learner.weights import named_weights

    learner = start(rank, world, port, parts)
    pairs = make_pairs(0)
    learner.step(shares(pairs, world)[rank], len(pairs))

    def current() -> dict[str, torch.Tensor]:
        return {n: w.clone() for n, w in named_weights(learner.module, learner.stage_number)}

    before = current()
    with learner.shards.holding(learner.average.values):
        held = current()
    after = current()
    assert any((held[n] != before[n]).any() for n in before)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name

    # The average's update must not talk to the other ranks at all.
    calls: list[str] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast", "all_gather_into_tensor")}
    for name, original in originals.items():
        setattr(dist, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    learner.average.update()
    assert calls == []
    learner.shutdown()


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (3, "bfloat16")])
def test_holding_other_weights_leaves_the_policy_as_it_was(stage, dtype, tiny_llama):
    in_group(2, hold, sections(tiny_llama, learner={"zero_stage": stage}, model={"dtype": dtype}))
