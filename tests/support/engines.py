"""What the tests of running engines share: a sender with weights of its own, and generation actors."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import Adapters, Backend, EngineSpec, Work
from actors.plan import Plan
from actors.token_table import TokenTable
from cluster.weights.publisher_spec import PublisherSpec
from learner.messages import Ack
from learner.model.adapters import is_adapter
from learner.zero.weights import adapter_layers, adapter_metadata, metadata, named_layers
from support import architectures, models, nccl
from support.models import token_logps

# Ray's workers do not have the folder of the tests on their path.
for _module in (architectures, models, nccl, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(_module)

MAX_LENGTH = 512
ADAPTERS = Adapters(4, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
"""What an ``AdapterSender`` publishes."""
SEQUENCES: list[list[int]] = [np.random.default_rng(i).integers(3, 128, n).tolist() for i, n in enumerate((5, 60, 300))]
"""What engines and senders are compared on. The last is over 128 tokens: on CPU only such prompts come from the prefix
cache when they are asked for again."""


class Sender:
    """A learner rank's end of the transfer: a transformers model whose weights change by version."""

    def __init__(self, folder: str, backend: Backend, workers_per_engine: int = 1, dtype: str = "float32") -> None:
        self._dtype = dtype
        self.open(folder)
        self._publisher = PublisherSpec(backend, 60.0, workers_per_engine).build()

    def open(self, folder: str) -> None:
        """Go on with another model."""
        from transformers import AutoModelForCausalLM

        device = "cuda" if ray.get_gpu_ids() else "cpu"
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, self._dtype))
        self._model = loaded.to(device)

    def stage(self, version: int, damaged: bool = False) -> None:
        """Other weights for every version, as different as a few hundred steps make them."""
        self.move(version, 0.3)
        self.stage_as_is(version)
        if damaged:
            slot = self._publisher._staged.newest()
            assert slot is not None
            slot.bytes[100] += 1

    def move(self, seed: int, share: float) -> None:
        """Change every weight by about this share of its matrix's standard deviation."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self._model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(share * parameter.std() * noise)

    def stage_as_is(self, version: int) -> None:
        self._publisher.stage(version, metadata(self._model), named_layers(self._model, zero_stage=0))

    def stage_with_a_wrong_layer(self, version: int) -> None:
        """Weights in which a middle layer's are those of the next; the sender goes on scoring with the right ones."""
        layers = self._model.model.layers
        layer = len(layers) // 2 - 1
        right = {name: value.clone() for name, value in layers[layer].state_dict().items()}
        layers[layer].load_state_dict(layers[layer + 1].state_dict())
        self.stage_as_is(version)
        layers[layer].load_state_dict(right)

    def retarget(self, actors: dict[str, Any]) -> None:
        self._publisher.retarget(actors)

    def send(self) -> list[Ack]:
        return self._publisher.send()

    def state(self) -> dict[str, torch.Tensor]:
        return self._model.state_dict()

    def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """float32 [tokens - 1] of each: by transformers."""
        return [token_logps(self._model, sequence) for sequence in sequences]

    def shutdown(self) -> None:
        self._publisher.shutdown()


class AdapterSender(Sender):
    """One that trains LoRA adapters and publishes these alone."""

    def open(self, folder: str) -> None:
        from peft import LoraConfig, get_peft_model

        super().open(folder)
        lora = LoraConfig(r=ADAPTERS.rank, lora_alpha=12.0, target_modules="all-linear", task_type="CAUSAL_LM")
        self._model = get_peft_model(self._model, lora, autocast_adapter_dtype=False)

    def move(self, seed: int, share: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if is_adapter(name):
                    parameter.add_(share / 3 * torch.randn(parameter.shape, generator=generator).to(parameter.device))

    def stage_as_is(self, version: int) -> None:
        self._publisher.stage(version, adapter_metadata(self._model), adapter_layers(self._model, zero_stage=0))

    def bytes_staged(self) -> int:
        slot = self._publisher._staged.newest()
        assert slot is not None
        return slot.update.size


def start_sender(
    folder: str, backend: Backend, workers_per_engine: int = 1, dtype: str = "float32", gpus: float = 0.0
) -> Any:
    return ray.remote(num_cpus=0, num_gpus=gpus)(Sender).remote(folder, backend, workers_per_engine, dtype)


def start_actor(
    name: str,
    folder: str,
    backend: Backend,
    config: GenerationConfig,
    buffer: Any = None,
    work: Work | None = None,
    kind: type[GenerationActor] = GenerationActor,
    place: Any = None,
    dtype: str = "float32",
    gpus: float = 0.0,
    adapters: Adapters | None = None,
) -> Any:
    """A real generation actor; without ``work`` it only scores and takes weights. ``place``: a scheduling strategy.
    With a share of ``gpus`` its engine can sleep."""
    engine = EngineSpec(
        folder,
        dtype,
        MAX_LENGTH,
        ends=(2,),
        seed=0,
        backend=backend,
        use_gpu=gpus > 0,
        sleep_mode=gpus > 0,
        adapters=adapters,
    )
    nothing = Work(Plan(0, np.zeros(0, np.int32), 8, 1), TokenTable.empty())
    return (
        ray.remote(kind)
        .options(
            num_cpus=0,
            num_gpus=gpus,
            max_concurrency=100,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            scheduling_strategy=place,
        )
        .remote(name, engine, config, work or nothing, buffer)
    )


def mean_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """In nats, over all tokens of all sequences."""
    return float(np.abs(np.concatenate(ours) - np.concatenate(theirs)).mean())


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """In nats, over all tokens of all sequences."""
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
