"""The packed forward under ZeRO-3: parameters are gathered by the modules' hooks, ranks keep step."""

from __future__ import annotations

import os

import pytest
import torch

from contracts.pair import PreferencePair
from learner.model.forward import score
from learner.model.packing import pack
from support.rank_group import in_group

pytestmark = pytest.mark.slow


def make_pairs() -> list[PreferencePair]:
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        return rng.integers(3, 128, n).astype(np.int32)

    shapes = [(11, 6, 5, 4, 7, True), (3, 0, 4, 0, 2, False), (20, 30, 26, 28, 23, True), (5, 1, 1, 1, 2, False)]
    return [PreferencePair(draw(p), draw(a + b + c), a, a + b, draw(b2), kept) for p, a, b, c, b2, kept in shapes]


def loss_of(model: torch.nn.Module, pairs: list[PreferencePair], checkpointed_chunk: int) -> torch.Tensor:
    (batch,) = pack(pairs, 10_000, "shared")
    logps = score(model, batch, checkpointed_chunk)
    return (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum()


def run_rank(rank: int, world: int, port: int, folder: str, share: list[list[int]], out: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed
    from deepspeed.utils import safe_get_full_grad
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        },
    )
    pairs = make_pairs()
    for _ in range(2):  # the second pass runs on the recorded trace
        # Chunks of 8: the ranks have different numbers of them.
        loss = loss_of(engine.module, [pairs[i] for i in share[rank]], 8)
        engine.backward(loss)
        gradients = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()}
        engine.step()
    if rank == 0:
        torch.save(gradients, out)


@pytest.mark.parametrize("tied", [False, True])
def test_zero3_gradients_equal_one_process(tied, tmp_path, tiny_llama, tiny_llama_tied):
    from transformers import AutoModelForCausalLM

    folder, share = (tiny_llama_tied if tied else tiny_llama), [[0, 1, 3], [2]]
    out = str(tmp_path / "gradients.pt")
    in_group(2, run_rank, folder, share, out)
    model, pairs = AutoModelForCausalLM.from_pretrained(folder).train(), make_pairs()
    loss = torch.stack([loss_of(model, [pairs[i] for i in part], 10_000) for part in share]).sum() / 2
    loss.backward()
    found = torch.load(out)
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() <= 1e-5 * max(1, parameter.grad.abs().max()), name
