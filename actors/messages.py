"""What crosses the border of a generation actor's process, and of its engine: frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actors.plan import Plan
from actors.token_table import TokenTable

Backend = Literal["shm", "gloo", "nccl", "ipc"]
"""How weights reach an engine: shared memory, TCP, NCCL, CUDA IPC."""


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters that are published alone."""

    rank: int
    layers: tuple[str, ...]
    """Last parts of the names of the layers that have some."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is made of, beside the ``generation`` section."""

    model: str
    """Folder or hub name; the engine starts with its weights."""
    dtype: str
    """Of weights and arithmetic: ``float32`` or ``bfloat16``."""
    max_length: int
    """Tokens of prompt and response together."""
    ends: tuple[int, ...]
    """Token ids that end a response."""
    seed: int
    backend: Backend
    use_gpu: bool
    trust_remote_code: bool = False
    sleep_mode: bool = False
    """On GPU: the engine can give its memory back between steps."""
    batch_invariant: bool = False
    """On GPU: a request's tokens do not depend on what else is in the batch."""
    adapters: Adapters | None = None
    """What is published to an engine that keeps the weights it was started with; None: whole weights are."""


@dataclass(frozen=True)
class Work:
    """What there is to do: the same for every actor of a run."""

    plan: Plan
    table: TokenTable


@dataclass(frozen=True)
class Completion:
    """One finished continuation."""

    tokens: list[int]
    """Ends at the first token that ends a response, or at the limit."""
    versions: NDArray[np.int32]
    """int32 [tokens]: version of the weights that sampled each token."""
    mean_logprob: float
    """Nats per token, before temperature and filters."""


@dataclass(frozen=True)
class ActorStatus:
    """What an actor has done so far."""

    tokens: int
    """Generated."""
    in_flight: int
    """Requests that the engine works on now."""
    idle_s: float
    """Seconds without any request since the first."""
