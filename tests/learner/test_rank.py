"""A group of DeepSpeed ranks computes what one process of PyTorch alone would, under every ZeRO stage."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore, supervised
from learner.config import ReferenceConfig
from support.rank_group import (
    BATCH,
    BETA,
    DECAY,
    LR,
    STEPS,
    close,
    in_group,
    make_pairs,
    save,
    sections,
    share,
    start,
    steps,
    unpacked_logps,
    weights,
)

pytestmark = pytest.mark.slow


def train(rank: int, world: int, port: int, parts: dict[str, Any], out: str, count: int) -> None:
    learner = start(rank, world, port, parts)
    history = steps(learner, 0, count)
    save(learner, out)
    if rank == 0:
        torch.save(history, Path(out) / "history.pt")
    learner.shutdown()


class Oracle(NamedTuple):
    policy: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    losses: list[float]
    norms: list[float]


def single_process_run(folder: str, make_optimizer: Any, renew_every: int | None = None, count: int = STEPS) -> Oracle:
    """PyTorch alone in one process: two sequences a pair, a torch optimizer, a hand-written EMA of every parameter.

    The reference is the start, or a copy of the EMA that is renewed every so many steps.
    """
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    frozen, ema = copy.deepcopy(policy).eval(), copy.deepcopy(policy)
    optimizer = make_optimizer(policy.parameters(), lr=LR, weight_decay=0.0)
    losses, norms = [], []
    for step in range(count):
        loss = torch.zeros(())
        for pair in make_pairs(step):
            ratio = [
                (unpacked_logps(policy, pair.prompt, half) - unpacked_logps(frozen, pair.prompt, half).detach()).sum()
                for half in (pair.chosen, pair.rejected)
            ]
            loss = loss - torch.nn.functional.logsigmoid(BETA * (ratio[0] - ratio[1])) / BATCH
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            for kept, new in zip(ema.parameters(), policy.parameters(), strict=True):
                kept.copy_(DECAY * kept + (1 - DECAY) * new)
        if renew_every and (step + 1) % renew_every == 0:
            frozen = copy.deepcopy(ema).eval()
    return Oracle(policy.state_dict(), ema.state_dict(), losses, norms)


@pytest.fixture(scope="module")
def oracles(tiny_llama: str, tiny_llama_tied: str) -> dict[str, Oracle]:
    return {
        "untied": single_process_run(tiny_llama, torch.optim.AdamW),
        "tied": single_process_run(tiny_llama_tied, torch.optim.AdamW),
        "rmsprop": single_process_run(tiny_llama, torch.optim.RMSprop),
        "renewed": single_process_run(tiny_llama, torch.optim.AdamW, renew_every=4),
    }


@pytest.mark.parametrize(
    ("which", "learner"),
    [
        ("untied", {"zero_stage": 0}),
        ("tied", {"zero_stage": 0, "activation_offload": True}),
        ("renewed", {"zero_stage": 1}),
        ("tied", {"zero_stage": 1, "offload_optimizer": True}),
        ("untied", {"zero_stage": 2, "tokens_per_batch": 40}),
        ("untied", {"zero_stage": 3, "tokens_per_batch": 40}),
        ("tied", {"zero_stage": 3, "offload_optimizer": True, "tokens_per_batch": 100}),
        ("rmsprop", {"zero_stage": 3, "forward": "padded", "activation_offload": True}),
    ],
)
def test_two_ranks_equal_one_process_over_20_steps(which, learner, oracles, tiny_llama, tiny_llama_tied, tmp_path):
    optimizer = {"name": "rmsprop" if which == "rmsprop" else "adamw"}
    folder = tiny_llama_tied if which == "tied" else tiny_llama
    reference = {"mode": "ema", "interval": 4} if which == "renewed" else {}
    parts = sections(folder, learner=learner, optimizer=optimizer, reference=reference)
    in_group(2, train, parts, str(tmp_path), STEPS)
    oracle = oracles[which]
    history = torch.load(tmp_path / "history.pt")
    np.testing.assert_allclose([m["loss"] for m in history], oracle.losses, atol=2e-4)
    np.testing.assert_allclose([m["grad_norm"] for m in history], oracle.norms, rtol=2e-3)
    # RMSprop's first step is lr / sqrt(1 - alpha): ten times AdamW's, and so is what rounding can do.
    tolerance = 2e-3 if which == "rmsprop" else 2e-4
    close(weights(tmp_path / "policy"), oracle.policy, tolerance)
    close(weights(tmp_path / "ema"), oracle.ema, tolerance)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_update_does_not_depend_on_packing_or_ranks(zero_stage, tiny_llama, tmp_path):
    results = []
    for world, tokens in ((1, 1024), (2, 40), (3, 100)):
        out = tmp_path / f"{world}-{tokens}"
        out.mkdir()
        parts = sections(tiny_llama, learner={"zero_stage": zero_stage, "tokens_per_batch": tokens, "ranks": world})
        in_group(world, train, parts, str(out), 2)
        results.append(weights(out / "policy"))
    # AdamW's first steps are lr in size whatever the gradient's, so rounding of near-zero gradients shows enlarged.
    for other in results[1:]:
        close(results[0], other, 0.02 * LR)


def train_in_bf16(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    losses = []
    for _ in range(8):  # the same pairs each time: the loss has to fall
        pairs = make_pairs(0)
        losses.append(learner.step(share(pairs, rank, world), len(pairs)).metrics["loss"])
    assert {m.dtype for m in learner.shards.masters} == {torch.float32}
    assert {v.dtype for v in learner.ema.values} == {torch.float32}
    assert {v.dtype for v in learner.reference.values} == {torch.bfloat16}
    # Rounded to bf16, the rotary frequencies would put far positions elsewhere than the engines do.
    assert learner.module.model.rotary_emb.inv_freq.dtype == torch.float32
    save(learner, out)
    if rank == 0:
        torch.save(losses, Path(out) / "losses.pt")
    learner.shutdown()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_bf16_trains_with_fp32_masters(zero_stage, tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    model = {"dtype": "bfloat16", "from_scratch": True, "gradient_checkpointing": True}
    parts = sections(tiny_llama, model=model, learner={"zero_stage": zero_stage, "tokens_per_batch": 40})
    in_group(2, train_in_bf16, parts, str(tmp_path))
    losses = torch.load(tmp_path / "losses.pt")
    assert losses[-1] < 0.7 * losses[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ema").dtype == torch.bfloat16


def run_small_things(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    # One pair for two ranks: the other one computes nothing that counts, and still keeps step.
    pair = make_pairs(1, 1)
    report = learner.step(pair if rank == 0 else [], 1)
    assert abs(report.metrics["loss"] - np.log(2)) < 1e-5
    assert report.metrics["grad_norm"] > 0

    # Cached log-probabilities are not computed again, and are used.
    pairs = make_pairs(2, 2)
    first = learner.step([pairs[rank]], 2).reference_scores
    assert first[0].version == 0
    again = learner.step([pairs[rank].with_reference(first[0])], 2)
    assert again.reference_scores == [None]
    # Another version's are: these would make the loss a thousand.
    stale = ReferenceScore(7, np.array([0, 0, 0, -1e4, 0], np.float32))
    renewed = learner.step([pairs[rank].with_reference(stale)], 2)
    np.testing.assert_allclose(renewed.reference_scores[0].logps, first[0].logps, atol=1e-5)
    assert renewed.metrics["loss"] < 2

    if learner.zero_stage == 0:
        wrong = PreferencePair(*(np.array([3, 500], np.int32),) * 2, 0, 2, np.array([4], np.int32), False)
        with pytest.raises(UserError, match="token id 500 is outside its vocabulary of 128"):
            learner.step([wrong], 2)
    # What a rank can't write is told by that rank, and the others are not held up: they stay in step.
    if rank == 0:
        (Path(out) / "full").mkdir(exist_ok=True)
        (Path(out) / "full" / "ema").write_text("in the way")
    else:
        (Path(out) / "full" / "learner" / "rank-1.json").mkdir(parents=True)
    for background in (True, False):
        learner.save(f"{out}/full", background)
        with pytest.raises(UserError, match=rf"learner rank {rank}: .*full: "):
            learner.written()
    save(learner, f"{out}/empty")

    # A gradient that is not finite changes no weight, and the next step is as if it had not been.
    masters, ema = learner.shards.copy(), [value.clone() for value in learner.ema.values]
    poisoned = ReferenceScore(0, np.full(5, np.nan, np.float32))
    skipped = learner.step([pairs[rank].with_reference(poisoned)], 2)
    assert skipped.metrics["learner/skipped"] == 1
    assert not np.isfinite(skipped.metrics["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(masters, learner.shards.masters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema, learner.ema.values, strict=True))
    after = learner.step([pairs[rank].with_reference(first[0])], 2)
    assert after.metrics["learner/skipped"] == 0
    assert np.isfinite(after.metrics["grad_norm"])
    assert not all(torch.equal(a, b) for a, b in zip(masters, learner.shards.masters, strict=True))

    learner.shards.restore([torch.full_like(master, float("nan")) for master in learner.shards.masters])
    assert learner.step([pairs[rank]], 2).metrics["learner/skipped"] == 1
    learner.shutdown()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_small_batches_cached_references_and_rejections(zero_stage, tiny_llama, tmp_path):
    in_group(2, run_small_things, sections(tiny_llama, learner={"zero_stage": zero_stage}), str(tmp_path))


def train_supervised(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    rows = [supervised(i, p.prompt, p.chosen) for i, p in enumerate(make_pairs(0))]
    metrics = learner.step(share(rows, rank, world), len(rows)).metrics
    assert learner.reference.values == []
    if rank == 0:
        torch.save(metrics, out)
    learner.shutdown()


def test_supervised_rows_train_without_a_reference(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    parts = sections(tiny_llama, objective={"name": "sft"}, learner={"zero_stage": 2})
    parts["reference"] = ReferenceConfig(mode="none")
    in_group(2, train_supervised, parts, str(tmp_path / "metrics.pt"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        expected = np.mean([-float(unpacked_logps(model, p.prompt, p.chosen).mean()) for p in make_pairs(0)])
    assert torch.load(tmp_path / "metrics.pt")["loss"] == pytest.approx(expected, abs=1e-4)


def evaluate_and_train(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    held = make_pairs(9)
    own = share(held, rank, world)
    rows = share([supervised(i, p.prompt, p.chosen) for i, p in enumerate(held)], rank, world)
    found = [learner.evaluate(own, len(held), chosen_only=False), learner.evaluate(rows, len(held), chosen_only=True)]
    steps(learner, 0, 2)
    found.append(learner.evaluate(own, len(held), chosen_only=False))
    save(learner, out)
    if rank == 0:
        torch.save(found, Path(out) / "found.pt")
    learner.shutdown()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_held_out_pairs_are_scored_and_change_nothing(zero_stage, tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    parts = sections(tiny_llama, learner={"zero_stage": zero_stage, "tokens_per_batch": 40})
    for name, body in (("with", evaluate_and_train), ("without", train)):
        (tmp_path / name).mkdir()
        in_group(2, body, parts, str(tmp_path / name), *([2] if body is train else []))
    first, rows, later = torch.load(tmp_path / "with" / "found.pt")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5), "policy and reference are the same"
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        expected = np.mean([-float(unpacked_logps(model, p.prompt, p.chosen).mean()) for p in make_pairs(9)])
    assert rows["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(later["rewards/margins"]) > 1e-4
    with_it, without = (weights(tmp_path / name / "policy") for name in ("with", "without"))
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def falcon_h1(folder: Path) -> str:
    """A hybrid: every layer has attention and a recurrent mixer."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        mamba_d_ssm=48,
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=16,
    )
    FalconH1ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def train_hybrid(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    losses = [metrics["loss"] for metrics in steps(learner, 0, 3)]
    if rank == 0:
        torch.save((learner.note, losses), out)
    learner.shutdown()


def test_a_hybrid_model_falls_back_to_the_padded_forward_and_says_so(tmp_path):
    parts = sections(falcon_h1(tmp_path / "hybrid"), learner={"zero_stage": 3})
    in_group(2, train_hybrid, parts, str(tmp_path / "seen.pt"))
    note, losses = torch.load(tmp_path / "seen.pt")
    assert note.startswith("padded forward: falcon_h1 has recurrent layers")
    np.testing.assert_allclose(
        losses, single_process_run(parts["model"].path, torch.optim.AdamW, count=3).losses, atol=1e-4
    )


def observe_dropout(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    pairs = make_pairs(0)
    mine = share(pairs, rank, world)
    report = learner.step(mine, len(pairs))  # the self-check would stop it if dropout were on there
    assert report.metrics["loss"] > np.log(2) + 0.05, "dropout is off while training"
    assert learner.module.training
    scores = {pair.index: score.logps for pair, score in zip(mine, report.reference_scores, strict=True)}
    held = sum(v.numel() * v.element_size() for v in learner.reference.values)
    torch.save((scores, held), f"{out}/{rank}.pt")
    learner.shutdown()


@pytest.fixture(scope="module")
def with_dropout(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, np.ndarray], list[int]]:
    """(reference log-probabilities by pair, bytes of the reference on each rank) of a bf16 model with dropout."""
    folder, out = tmp_path_factory.mktemp("models") / "dropout", tmp_path_factory.mktemp("seen")
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    # Without dropout policy and reference are equal and the loss is log 2. Margins of both signs raise it, the more the
    # larger beta is.
    changes = {
        "model": {"dtype": "bfloat16", "disable_dropout": False},
        "objective": {"beta": 10.0},
        "learner": {"zero_stage": 2},
    }
    parts = sections(str(folder), **changes)
    in_group(2, observe_dropout, parts, str(out))
    ranks = [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return ranks[0][0] | ranks[1][0], [held for _, held in ranks]


def test_reference_and_self_check_run_without_dropout(with_dropout, tiny_llama):
    from transformers import AutoModelForCausalLM

    scores, _ = with_dropout
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    for pair in make_pairs(0):
        with torch.no_grad():
            chosen = float(unpacked_logps(model, pair.prompt, pair.chosen).mean())
        assert scores[pair.index][:3].sum() / len(pair.chosen) == pytest.approx(chosen, abs=0.05)


def test_the_reference_is_one_sharded_copy_in_the_models_dtype(with_dropout, tiny_llama):
    _, held = with_dropout
    whole = sum(w.numel() for w in weights(tiny_llama).values())
    assert 2 * whole <= sum(held) < 2 * whole + 1024  # two bytes a weight over all ranks, and padding
    assert max(held) < 1.01 * whole
