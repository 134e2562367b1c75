"""vLLM's NCCL transfer into a real engine, both ends in one process: the communicator is a queue, all else is real.

One broadcast a tensor: the packed form needs CUDA streams.
"""

from __future__ import annotations

import asyncio
import queue
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import ray
import torch

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from cluster.weights.publisher import Publisher
from cluster.weights.staging import StagedVersions
from learner.messages import Ack
from support.engines import SEQUENCES, largest_difference, start_actor
from support.models import save_llama, token_logps

WORD = 2
"""Which of the broadcast weights is damaged on the way."""


def receiving() -> type[GenerationActor]:
    class Receiving(GenerationActor):  # here, so that its workers need not import this file
        async def receive(self, version: int, weights: list[tuple[str, Any]], damaged: int) -> tuple[list[Ack], int]:
            """Publish to itself; the first ``damaged`` attempts lose a bit. Acks, and attempts that were made."""
            return await asyncio.to_thread(
                self._publish, ray.get_runtime_context().current_actor, version, weights, damaged
            )

        def _publish(
            self, handle: Any, version: int, weights: list[tuple[str, Any]], damaged: int
        ) -> tuple[list[Ack], int]:
            from vllm.distributed.weight_transfer import nccl_engine

            wires: list[queue.Queue] = []

            def sender(_: Any) -> SimpleNamespace:
                def broadcast(tensor: torch.Tensor, **_: Any) -> None:
                    sent.append(1)
                    sending = tensor.clone()
                    if len(wires) <= damaged and len(sent) == WORD:
                        sending.view(-1).view(torch.int32)[7] ^= 1
                    wire.put(sending)

                wire: queue.Queue = queue.Queue()
                sent: list[int] = []
                wires.append(wire)
                return SimpleNamespace(broadcast=broadcast, destroy=lambda: None)

            def receiver(*_: Any) -> SimpleNamespace:
                def broadcast(tensor: torch.Tensor, **_: Any) -> None:
                    tensor.copy_(wires[-1].get(timeout=60))

                return SimpleNamespace(broadcast=broadcast, destroy=lambda: None)

            tensors = [(name, torch.from_numpy(array)) for name, array in weights]
            staged = StagedVersions(shared=False, device="cpu")
            publisher = Publisher("nccl", staged, timeout_s=60.0)
            publisher.retarget({self.name: handle})
            publisher.stage(version, [(name, t.dtype, tuple(t.shape)) for name, t in tensors], [tensors])
            unpacked = partial(nccl_engine.NCCLTrainerInitInfo, packed=False)
            with (
                mock.patch.object(nccl_engine, "open_trainer_endpoint", sender),
                mock.patch.object(nccl_engine, "worker_init_process_group", receiver),
                mock.patch.object(nccl_engine, "NCCLTrainerInitInfo", unpacked),
                mock.patch.object(torch.cuda, "current_stream", lambda: None),
            ):
                return publisher.send(), len(wires)

    return Receiving


@pytest.mark.slow
def test_a_version_over_nccl_is_verified_and_sent_again_when_it_came_damaged(ray_local, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model = save_llama(tmp_path, tied=False, vocab_size=130)
    newer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    weights = [(name, p.detach().numpy()) for name, p in newer.named_parameters()]
    actor = start_actor("a", model, "nccl", GenerationConfig(), kind=receiving())
    (ack,), attempts = ray.get(actor.receive.remote(1, weights, damaged=1))
    assert (ack.error, ack.version, attempts) == ("", 1, 2)
    expected = [token_logps(newer, sequence) for sequence in SEQUENCES]
    assert largest_difference(ray.get(actor.score.remote(SEQUENCES)), expected) < 1e-4
    (ack,), attempts = ray.get(actor.receive.remote(2, weights, damaged=2))
    assert attempts == 2
    assert ack.error.startswith("weights: 1 arrived damaged, the first is model.")
