"""An engine whose layers take published weights directly computes as transformers does with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.weights.direct_load import DirectLoad, _whole
from support.engines import MAX_LENGTH, SEQUENCES, start_actor, start_sender
from support.models import IDS, LLAMA

# vLLM pads vocabularies to a multiple of 64.
IDS_HERE, LLAMA_HERE = IDS | {"vocab_size": 130}, LLAMA | {"vocab_size": 130}


def inspected() -> type[GenerationActor]:
    class Inspected(GenerationActor):  # here, so that its workers need not import this file
        def route(self) -> str:
            """How weights are loaded."""
            vllms: Any = self._engine._engine._engine
            (direct,) = vllms.collective_rpc(lambda worker: worker.weight_transfer_engine._direct_load)
            return "vllm's" if direct is None else "packed" if direct._packed else "copied"

    return Inspected


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**LLAMA_HERE, tie_word_embeddings=True))


def qwen2():
    """Biases, which come between the weights that a layer holds together."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**LLAMA_HERE, tie_word_embeddings=True))


def qwen3():
    """Norms inside the attention, and a head of its own."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**LLAMA_HERE, tie_word_embeddings=False))


def gpt2():
    """Weights lie the other way round, though names and, where square, shapes agree: left to vLLM's own reload."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            **IDS_HERE, n_embd=64, n_layer=2, n_head=2, n_positions=MAX_LENGTH, n_inner=160, initializer_range=0.08
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "packed", "route"),
    [
        (llama, True, "packed"),
        (llama, False, "copied"),
        (qwen2, True, "packed"),
        (qwen3, True, "packed"),
        (gpt2, True, "vllm's"),
    ],
)
def test_every_version_arrives_whole(ray_local, tmp_path: Path, make: Callable, packed: bool, route: str):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    sender = start_sender(str(tmp_path), "shm")
    actor = start_actor("a", str(tmp_path), "shm", GenerationConfig(packed_weights=packed), kind=inspected())
    ray.get([sender.retarget.remote({"a": actor}), actor.ready.remote()])
    before = ray.get(actor.score.remote(SEQUENCES))
    for version in (1, 2, 3):
        ray.get(sender.stage.remote(version))
        (ack,) = ray.get(sender.send.remote())
        assert not ack.error
        assert ray.get(actor.route.remote()) == route
        found, expected = ray.get([actor.score.remote(SEQUENCES), sender.score.remote(SEQUENCES)])
        for ours, theirs, old in zip(found, expected, before, strict=True):
            assert np.abs(ours - theirs).max() < 1e-4
            assert np.abs(ours - old).max() > 0.1
        before = found
    for handle in (actor, sender):
        ray.kill(handle)


class Deriving(torch.nn.Linear):
    """As vLLM's multi-head latent attention: it computes with something made from its weights."""

    def process_weights_after_loading(self) -> None: ...


def test_a_layer_that_derives_something_from_its_weights_is_left_to_vllm():
    assert DirectLoad.of(torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)), ["0.weight"])
    assert not DirectLoad.of(torch.nn.Sequential(Deriving(2, 2, bias=False)), ["0.weight"])


def test_parts_that_lie_side_by_side_are_not_copied():
    memory = torch.arange(24.0)
    a, b, c = memory[:8].view(2, 4), memory[8:12].view(1, 4), memory[16:24].view(2, 4)
    published = {"a": a, "b": b, "c": c}
    assert _whole(published, ("a", "b")).data_ptr() == a.data_ptr()
    assert _whole(published, ("a", "c")).data_ptr() != a.data_ptr()
    for sources in (("a",), ("a", "b"), ("a", "c"), ("b", "a"), ("a", "b", "c")):
        assert torch.equal(_whole(published, sources), torch.cat([published[name] for name in sources]))
