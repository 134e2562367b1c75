"""Adapters: what is trained, what the reference is, and that engines and exports get merged weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from learner.config import LoraConfig, ModelConfig
from support.architectures import build
from support.models import token_logps
from support.rank_group import (
    BATCH,
    BETA,
    DECAY,
    LR,
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

LORA = LoraConfig(rank=4, alpha=12.0, target_modules=("q_proj", "down_proj", "lm_head"))
STEPS = 6


def observe(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    history = steps(learner, 0, STEPS)
    pairs = share(make_pairs(50), rank, world)
    scores = learner.step(pairs, BATCH).reference_scores
    facts = {
        "losses": [metrics["loss"] for metrics in history],
        "trained": sum(m.numel() for m in learner.shards.masters),
        "reference": {pair.index: score.logps for pair, score in zip(pairs, scores, strict=True)},
        "resident": len(learner.reference.values),
    }
    learner.stage(STEPS + 1)
    facts["published"] = learner.sink.seen["weights"] if rank == 0 else None
    learner._spec = dataclasses.replace(learner._spec, adapters_alone=True)
    learner.stage(STEPS + 2)
    facts["alone"] = learner.sink.seen["weights"] if rank == 0 else None
    save(learner, out)
    torch.save(facts, Path(out) / f"facts-{rank}.pt")
    learner.shutdown()


class Observed(NamedTuple):
    ranks: list[dict[str, Any]]
    folder: Path
    base: str


@pytest.fixture(scope="module", params=[0, 2, 3])
def seen(request: pytest.FixtureRequest, tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    out = tmp_path_factory.mktemp("lora")
    # Checkpointing with a frozen embedding: the blocks' inputs must be made to want gradients.
    model = {"lora": LORA, "gradient_checkpointing": True}
    in_group(2, observe, sections(tiny_llama, learner={"zero_stage": request.param}, model=model), str(out))
    ranks = [torch.load(out / f"facts-{rank}.pt", weights_only=False) for rank in range(2)]
    return Observed(ranks, out, tiny_llama)


def single_process_run(base: str) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(losses, merged policy, merged EMA) of one process with peft, two sequences a pair, a hand-written EMA."""
    from learner.model.loading import load_model

    policy: Any = load_model(ModelConfig(path=base, dtype="float32", lora=LORA), seed=0)
    ema: Any = load_model(ModelConfig(path=base, dtype="float32", lora=LORA), seed=0)
    trainable = [p for p in policy.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0), []
    for step in [*range(STEPS), 50]:
        loss = torch.zeros(())
        for pair in make_pairs(step):
            ratios = []
            for half in (pair.chosen, pair.rejected):
                with policy.disable_adapter(), torch.no_grad():
                    reference = unpacked_logps(policy, pair.prompt, half).sum()
                ratios.append(unpacked_logps(policy, pair.prompt, half).sum() - reference)
            loss = loss - torch.nn.functional.logsigmoid(BETA * (ratios[0] - ratios[1])) / BATCH
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            for kept, new in zip(ema.parameters(), policy.parameters(), strict=True):
                kept.copy_(DECAY * kept + (1 - DECAY) * new)
    return losses[:STEPS], policy.merge_and_unload().state_dict(), ema.merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def oracle(tiny_llama: str) -> Any:
    return single_process_run(tiny_llama)


def test_two_ranks_equal_one_process_with_peft(seen, oracle):
    losses, policy, ema = oracle
    for facts in seen.ranks:
        assert facts["losses"] == pytest.approx(losses, abs=1e-5)
    close(weights(seen.folder / "policy"), policy, 1e-5)
    close(weights(seen.folder / "ema"), ema, 1e-5)


def test_base_weights_are_frozen(seen):
    before, after = weights(seen.base), weights(seen.folder / "policy")
    adapted = ("q_proj.weight", "down_proj.weight", "lm_head.weight")
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (not name.endswith(adapted)), name
    # 2 layers of q (64 to 64) and down (160 to 64), one head (64 to 128), at rank 4; ZeRO pads a little.
    adapters = 4 * (2 * (64 + 64) + 2 * (160 + 64) + (64 + 128))
    assert seen.ranks[0]["trained"] <= adapters


def test_reference_is_the_model_with_its_adapters_off_and_takes_no_memory(seen):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(seen.base, dtype=torch.float32)
    pairs = {pair.index: pair for pair in make_pairs(50)}
    found = {index: logps for facts in seen.ranks for index, logps in facts["reference"].items()}
    assert found.keys() == pairs.keys()
    for index, pair in pairs.items():
        with torch.no_grad():
            chosen = unpacked_logps(base, pair.prompt, pair.chosen).sum().item()
        assert found[index][:3].sum() == pytest.approx(chosen, abs=1e-3)
    assert [facts["resident"] for facts in seen.ranks] == [0, 0]


def test_published_weights_are_merged_and_have_the_base_models_names(seen):
    published = seen.ranks[0]["published"]
    close(published, weights(seen.folder / "ema"), 0.0)
    assert published.keys() == weights(seen.base).keys()


def test_adapters_are_published_alone_as_peft_saves_them_and_scaled(seen):
    from safetensors.torch import load_file

    alone, saved = seen.ranks[0]["alone"], load_file(seen.folder / "ema" / "adapter" / "adapter_model.safetensors")
    assert alone.keys() == saved.keys()
    scale = LORA.alpha / LORA.rank
    for name, value in saved.items():
        assert torch.equal(alone[name], scale * value if "lora_B" in name else value), name


@pytest.mark.parametrize("which", ["policy", "ema"])
def test_export_is_what_peft_merges_from_the_adapter_folder(seen, which):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(seen.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, seen.folder / which / "adapter").merge_and_unload()
    close(weights(seen.folder / which), merged.state_dict(), 1e-6)


SEQUENCES = [[5, 9, 77, 31, 8, 120], list(range(3, 60))]


def observe_scores(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    learner = start(rank, world, port, parts)
    steps(learner, 0, 2)
    scores = learner.score_ema(SEQUENCES)
    save(learner, out)
    if rank == 0:
        torch.save(scores, Path(out) / "scores.pt")
    learner.shutdown()


@pytest.mark.parametrize(
    ("architecture", "targets", "zero_stage"),
    [
        ("mixtral", "all-linear", 2),
        ("mixtral", "all-linear", 3),
        ("gpt2", "all-linear", 3),
        ("llama", ("embed_tokens",), 3),
    ],
)
def test_exports_compute_what_the_adapters_did_on_experts_transposed_weights_and_embeddings(
    architecture, targets, zero_stage, tmp_path
):
    from transformers import AutoModelForCausalLM

    build(architecture).save_pretrained(tmp_path / "base")
    model = {"lora": LoraConfig(rank=4, alpha=12.0, target_modules=targets)}
    parts = sections(str(tmp_path / "base"), learner={"zero_stage": zero_stage}, model=model)
    in_group(2, observe_scores, parts, str(tmp_path))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "ema", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    found = torch.load(tmp_path / "scores.pt", weights_only=False)
    for sequence, scores in zip(SEQUENCES, found, strict=True):
        assert abs(scores - token_logps(exported, sequence)).max() < 1e-4
        assert abs(scores - token_logps(base, sequence)).max() > 1e-3
