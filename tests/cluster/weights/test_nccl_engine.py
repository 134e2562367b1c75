"""vLLM's NCCL transfer into a real engine, both ends in one process: the communicators are queues, all else is real.

One broadcast a tensor: the packed form needs CUDA streams.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from cluster.weights import senders
from cluster.weights.publisher import Publisher
from cluster.weights.staging import StagedVersions
from learner.messages import Ack
from learner.zero.weights import adapter_layers
from support.engines import ADAPTERS, SEQUENCES, AdapterSender, largest_difference, start_actor
from support.models import save_llama, token_logps
from support.nccl import FakeNccl, Group, one_stream

WORD = 2
"""Which of the broadcast weights is damaged on the way."""
MIDDLE = 4
"""Before which of them a transfer is broken off: of a fused query, key and value, the first alone has come."""


def receiving() -> type[GenerationActor]:
    class Receiving(GenerationActor):  # here, so that its workers need not import this file
        async def receive(
            self, version: int, weights: list[tuple[str, Any]], damaged: int = 0, broken_off: int = 0
        ) -> tuple[list[Ack], int]:
            """Publish to itself. The first ``damaged`` attempts lose a bit, the first ``broken_off`` end in the middle.
            Acks, and attempts that were made."""
            return await asyncio.to_thread(
                self._publish, ray.get_runtime_context().current_actor, version, weights, damaged, broken_off
            )

        def _publish(
            self, handle: Any, version: int, weights: list[tuple[str, Any]], damaged: int, broken_off: int
        ) -> tuple[list[Ack], int]:
            from actors.weights import digesting
            from actors.weights.communicator import give_up

            library = FakeNccl()
            groups: list[Group] = []
            joined: list[int] = []

            def sender(_: Any) -> Any:
                groups.append(Group(2))
                communicator, sent, broadcast = groups[-1].join(library, 0), [0], PyNcclCommunicator.broadcast

                def spoiled(tensor: torch.Tensor, **options: Any) -> None:
                    sent[0] += 1
                    tensor = tensor.clone()
                    if len(groups) <= damaged and sent[0] == WORD:
                        tensor.view(-1).view(torch.int32)[7] ^= 1
                    if len(groups) <= broken_off and sent[0] == MIDDLE:
                        give_up(communicator)
                    broadcast(communicator, tensor, **options)

                communicator.broadcast = spoiled
                return communicator

            def receiver(*_: Any) -> Any:
                joined.append(1)
                while len(groups) < len(joined):
                    time.sleep(0.01)
                return groups[-1].join(library, 1)

            tensors = [(name, torch.from_numpy(array)) for name, array in weights]
            staged = StagedVersions(shared=False, device="cpu")
            publisher = Publisher("nccl", staged, timeout_s=60.0)
            publisher.retarget({self.name: handle})
            publisher.stage(version, [(name, t.dtype, tuple(t.shape)) for name, t in tensors], [tensors])
            unpacked = partial(senders.NcclInit, packed=False)
            with (
                mock.patch.object(senders, "open_trainer_endpoint", sender),
                mock.patch.object(digesting, "worker_init_process_group", receiver),
                mock.patch.object(senders, "NcclInit", unpacked),
                one_stream(),
            ):
                acks = publisher.send()
            publisher.shutdown()
            return acks, len(groups)

    return Receiving


@pytest.mark.slow
def test_adapters_over_nccl_are_verified_and_applied(ray_local, tiny_llama):
    sender = AdapterSender(tiny_llama, "shm")
    actor = start_actor("a", tiny_llama, "nccl", GenerationConfig(), kind=receiving(), adapters=ADAPTERS)
    for version in (1, 2):
        sender.move(version, 0.3)
        weights = [(name, tensor.numpy()) for layer in adapter_layers(sender._model, 0) for name, tensor in layer]
        (ack,), attempts = ray.get(actor.receive.remote(version, weights, damaged=1))
        assert (ack.error, ack.version, attempts) == ("", version, 2)
        assert largest_difference(ray.get(actor.score.remote(SEQUENCES)), sender.score(SEQUENCES)) < 1e-4


@pytest.mark.slow
def test_a_version_over_nccl_is_verified_and_sent_again_when_it_came_damaged_or_in_part(ray_local, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model = save_llama(tmp_path, tied=False, vocab_size=130)
    newer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    actor = start_actor("a", model, "nccl", GenerationConfig(), kind=receiving())

    def moved() -> list[tuple[str, Any]]:
        with torch.no_grad():
            for parameter in newer.parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
        return [(name, p.detach().numpy()) for name, p in newer.named_parameters()]

    for version, fault in ((1, {"damaged": 1}), (2, {"broken_off": 1})):
        (ack,), attempts = ray.get(actor.receive.remote(version, moved(), **fault))
        assert (ack.error, ack.version, attempts) == ("", version, 2)
        expected = [token_logps(newer, sequence) for sequence in SEQUENCES]
        assert largest_difference(ray.get(actor.score.remote(SEQUENCES)), expected) < 1e-4
    (ack,), attempts = ray.get(actor.receive.remote(3, moved(), damaged=2))
    assert attempts == 2
    assert ack.error.startswith("weights: 1 arrived damaged, the first is model.")
