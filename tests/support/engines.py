"""What the tests of running engines share: a sender with weights of its own, and generation actors."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.plan import Plan
from actors.token_table import TokenTable
from cluster.weights.publisher import Publisher
from learner.zero.weights import metadata, named_layers

MAX_LENGTH = 512


@ray.remote(num_cpus=0)
class Sender:
    """A learner rank's end of the transfer: a transformers model whose weights change by version."""

    def __init__(self, folder: str, backend: str) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._publisher = Publisher(backend, timeout_s=60.0)

    def stage(self, version: int, damaged: bool = False) -> None:
        """Other weights for every version, as different as a few hundred steps make them."""
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
        self._publisher.stage(version, metadata(self._model), named_layers(self._model, zero_stage=0))
        if damaged:
            slot = max(self._publisher._slots, key=lambda s: s.version)
            slot.bytes[100] += 1

    def retarget(self, actors: dict[str, Any]) -> None:
        self._publisher.retarget(actors)

    def send(self) -> list:
        return self._publisher.send()

    def state(self) -> dict[str, torch.Tensor]:
        return self._model.state_dict()

    def logps(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """float32 [tokens - 1] of each: by transformers."""
        out = []
        with torch.no_grad():
            for sequence in sequences:
                ids = torch.tensor(sequence)[None]
                logps = self._model(ids).logits[0, :-1].log_softmax(-1)
                out.append(logps.gather(-1, ids[0, 1:, None])[:, 0].numpy())
        return out

    def shutdown(self) -> None:
        self._publisher.shutdown()


def start_actor(
    name: str,
    folder: str,
    backend: str,
    config: GenerationConfig,
    buffer: Any = None,
    work: Any = None,
    kind: type[GenerationActor] = GenerationActor,
) -> Any:
    """A real generation actor; without ``work`` it only scores and takes weights."""
    engine = {
        "model": folder,
        "tokenizer": None,
        "dtype": "float32",
        "max_length": MAX_LENGTH,
        "eos": (2,),
        "seed": 0,
        "backend": backend,
        "use_gpu": False,
        "trust_remote_code": False,
        "sleep_mode": False,
    }
    nothing = (Plan(0, np.zeros(0, np.int32), 8, 1), TokenTable.empty())
    return (
        ray.remote(kind)
        .options(num_cpus=0, max_concurrency=100, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
        .remote(name, engine, config, work or nothing, buffer)
    )
