"""What a rank owns of the weights, and that other values take its place and leave no trace, under every ZeRO stage.

The configurations differ in everything that learner/zero/shards.py meets inside DeepSpeed: if a new version of it moves
something, these tests say what.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.config import ReferenceConfig
from learner.zero import shards
from support.rank_group import (
    DECAY,
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

SEQUENCES = [[5, 9, 3, 77], list(range(3, 120)), [4, 4]]


class CountedCollectives(TorchDispatchMode):
    """Counts the calls of torch.distributed's operators."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "c10d"
        return func(*args, **(kwargs or {}))


def observe(rank: int, world: int, port: int, parts: dict[str, Any], out: str) -> None:
    from learner.model.packing import pack
    from learner.zero.weights import named_weights

    learner = start(rank, world, port, parts)
    facts: dict[str, Any] = {"zero_stage": learner.zero_stage}

    def current() -> dict[str, torch.Tensor]:
        return {n: w.detach().clone() for n, w in named_weights(learner.module, learner.zero_stage)}

    def scored() -> torch.Tensor:
        (batch,) = pack(make_pairs(99), 10_000, "shared")
        with torch.no_grad():
            return learner._engine.module(batch)

    facts["masters_at_start"], facts["weights_at_start"] = learner.shards.copy(), current()
    steps(learner, 0, 3)  # by now ZeRO 3 has a trace of the forward and backward
    facts["ema_before"] = [v.clone() for v in learner.ema.values]
    pairs = make_pairs(3)
    with CountedCollectives() as in_step:
        learner._engine.train()
        learner.step(share(pairs, rank, world), len(pairs))
    facts["masters"], facts["ema"] = learner.shards.copy(), [v.clone() for v in learner.ema.values]
    with CountedCollectives() as in_update:
        learner.ema.update()
    for kept, before in zip(learner.ema.values, facts["ema"], strict=True):
        kept.copy_(before)
    facts["collectives"] = in_step.count, in_update.count

    facts["before"], facts["scored_before"] = current(), scored()
    with learner.shards.holding(learner.ema.values):
        facts["held"] = current()
        scored()  # leaves weights gathered
    facts["scored_ema"] = learner.score_ema(SEQUENCES)
    facts["scored_after"], facts["after"] = scored(), current()

    learner.stage(4)
    facts["published"] = learner.sink.seen if learner.sink else None
    save(learner, out)
    torch.save(facts, Path(out) / f"facts-{rank}.pt")
    learner.shutdown()


class Observed(NamedTuple):
    ranks: list[dict[str, Any]]
    folder: Path
    dtype: torch.dtype


CONFIGURATIONS = {
    "zero0-tied": (True, "float32", {"zero_stage": 0}),
    "zero1-offload": (False, "float32", {"zero_stage": 1, "offload_optimizer": True}),
    "zero2-bf16": (False, "bfloat16", {"zero_stage": 2}),
    "zero3-bf16-tied-offload": (True, "bfloat16", {"zero_stage": 3, "offload_optimizer": True}),
    "zero3": (False, "float32", {"zero_stage": 3, "tokens_per_batch": 60}),
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def seen(
    request: pytest.FixtureRequest, tiny_llama: str, tiny_llama_tied: str, tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    tied, dtype, learner = CONFIGURATIONS[request.param]
    out = tmp_path_factory.mktemp("seen")
    # Without a reference nothing but the calls below puts other values into the weights.
    parts = sections(
        tiny_llama_tied if tied else tiny_llama, model={"dtype": dtype}, learner=learner, objective={"name": "orpo"}
    )
    parts["reference"] = ReferenceConfig(mode="none")
    in_group(2, observe, parts, str(out))
    ranks = [torch.load(out / f"facts-{rank}.pt", weights_only=False) for rank in range(2)]
    return Observed(ranks, out, getattr(torch, dtype))


def test_masters_of_all_ranks_are_the_model_in_fp32(seen):
    whole = torch.cat([w.flatten() for w in seen.ranks[0]["weights_at_start"].values()]).float()
    ranks = seen.ranks[:1] if seen.ranks[0]["zero_stage"] == 0 else seen.ranks
    masters = torch.cat([m.flatten() for facts in ranks for m in facts["masters_at_start"]])
    assert masters.dtype == torch.float32
    # The partition has its own order, and zeros at the end of a rank's part.
    assert torch.equal(whole[whole != 0].sort().values, masters[masters != 0].sort().values)
    assert len(whole) <= len(masters) < len(whole) + 128


def test_ema_update_equals_the_formula_on_every_shard(seen):
    for facts in seen.ranks:
        for before, master, after in zip(facts["ema_before"], facts["masters"], facts["ema"], strict=True):
            assert not torch.equal(before, after)
            torch.testing.assert_close(after, DECAY * before + (1 - DECAY) * master, rtol=0, atol=1e-7)


def test_ema_update_makes_no_collective(seen):
    for facts in seen.ranks:
        in_step, in_update = facts["collectives"]
        assert in_step > 0
        assert in_update == 0


def test_holding_shows_the_ema_and_leaves_the_policy_bit_for_bit(seen):
    for facts in seen.ranks:
        assert any((facts["held"][name] != value).any() for name, value in facts["before"].items())
        close(facts["after"], facts["before"], 0.0)
        assert torch.equal(facts["scored_after"], facts["scored_before"])


def test_both_ranks_hold_the_same_weights(seen):
    for which in ("before", "held", "after"):
        close(seen.ranks[0][which], seen.ranks[1][which], 0.0)


def test_published_weights_are_the_exported_ema_under_checkpoint_names(seen):
    from safetensors.torch import load_file

    published = seen.ranks[0]["published"]
    exported = load_file(seen.folder / "ema" / "model.safetensors")
    assert published["version"] == 4
    close(published["weights"], exported, 0.0)
    close(seen.ranks[0]["held"], exported, 0.0)
    assert published["metadata"] == [(name, w.dtype, tuple(w.shape)) for name, w in published["weights"].items()]
    assert {dtype for _, dtype, _ in published["metadata"]} == {seen.dtype}


def test_only_rank_0_has_a_sink(seen):
    assert [facts["published"] is None for facts in seen.ranks] == [False, True]


def test_publication_gathers_one_layer_at_a_time(seen):
    published = seen.ranks[0]["published"]
    sizes: Counter[str] = Counter()
    for name, weight in published["weights"].items():
        sizes[".".join(name.split(".")[:3]) if ".layers." in name else name] += weight.numel()
    if seen.ranks[0]["zero_stage"] == 3:
        assert published["most_gathered"] == max(sizes.values()) < sum(sizes.values()) / 2
    else:
        assert published["most_gathered"] == 0


def test_scores_under_the_ema_are_those_of_the_exported_model(seen):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(seen.folder / "ema", dtype=seen.dtype)
    for facts in seen.ranks:
        for sequence, ours in zip(SEQUENCES, facts["scored_ema"], strict=True):
            ids = np.array(sequence, np.int32)
            with torch.no_grad():
                theirs = unpacked_logps(model, ids[:1], ids[1:]).numpy()
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=1e-4 if seen.dtype == torch.float32 else 0.1)


def test_exported_policy_loads_in_transformers(seen):
    close(weights(seen.folder / "policy"), {k: v.float() for k, v in loaded_names(seen).items()}, 0.0)


def loaded_names(seen: Observed) -> dict[str, torch.Tensor]:
    """The policy's weights with the tied head under both names, as a loaded model shows them."""
    found = dict(seen.ranks[0]["after"])
    return found | {"lm_head.weight": found.get("lm_head.weight", found["model.embed_tokens.weight"])}


@pytest.mark.gpu
def test_values_in_host_memory_are_rounded_on_the_gpu_as_on_the_host(monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 1000)
    values = torch.randn(4321, generator=torch.Generator().manual_seed(0)).pin_memory()
    target = torch.empty(4321, dtype=torch.bfloat16, device="cuda")
    shards.load_into(target, values)
    values.zero_()  # the next update of the EMA
    assert torch.equal(target.cpu(), torch.randn(4321, generator=torch.Generator().manual_seed(0)).bfloat16())
