"""How large the GPU benchmark's cases are, and what is noted of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table; what a case does not have stays None."""

    section: str
    case: str
    shape: str
    tokens_per_s: float | None = None
    """Computed, or generated."""
    pairs_per_s: float | None = None
    share_of_peak: float | None = None
    """Of the card's dense bf16 arithmetic, counting 6 operations a parameter and token of a training step."""
    peak_bytes: int | None = None
    """Of the GPU's memory, by this process."""
    bytes_per_s: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Architecture:
    """Of a random Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    def changes(self) -> dict[str, Any]:
        """To a Llama's config.json."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4096,
        }


ARCHITECTURES = {
    "tiny": Architecture(64, 2, 2, 1, 128, 512, tied=False),
    "1B": Architecture(2048, 16, 32, 8, 8192, 128256, tied=True),
    "8B": Architecture(4096, 32, 32, 8, 14336, 128256, tied=False),
}
"""The large ones are Llama-3.2-1B's and Llama-3-8B's shapes."""


@dataclass(frozen=True)
class Scale:
    """What is measured, and with how much of it."""

    device: str
    """``cuda`` or ``cpu``."""
    learner: str
    """Architecture of the learner's, the engine's and the publication's cases."""
    pair_shape: str
    """prompt/response/segment in tokens."""
    pairs: int
    rounds: int
    requests: int
    """Generated in a round of the engine's case."""
    runs: tuple[str, ...]
    """``smollm2`` and architectures that whole runs train."""
    run_steps: int
    limits_s: dict[str, float] = field(default_factory=dict)
    """Of each section; together they are below the 9 minutes of ``make bench-gpu``."""

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"


LIMITS_S = {"learner": 80.0, "engine": 110.0, "publication": 120.0, "runs": 230.0}


def scale(device: str, *, tiny: bool) -> Scale:
    """Either the card's, or one that ends within a minute or two on any machine."""
    if tiny:
        return Scale(device, "tiny", "48/24/8", 2, 1, 8, ("tiny",), 2, dict.fromkeys(LIMITS_S, 600.0))
    return Scale(device, "1B", "1024/512/256", 8, 5, 512, ("smollm2", "1B", "8B"), 4, LIMITS_S)


PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 operations a second by NVIDIA's data sheets; the first name that the card's contains counts."""


def peak_of(card: str) -> float | None:
    """Operations a second; None for a card that is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in card), None)


Section = Callable[[Scale], Iterator[Figure]]
"""Gives each figure as soon as it is there."""
