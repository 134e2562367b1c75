"""The generation actors' configuration section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from actors.engine_arguments import rejection
from contracts.section import Count, NonNegative, PositiveFloat, Section

AfterEos = Literal["drop", "keep", "reject"]


class GenerationConfig(Section):
    """The vLLM actors: where a response is cut, how its next segment is rewritten, and on what."""

    actors: NonNegative = Field(1, description="Generation actors; 0 when others join by `sapo actors`.")
    segment_length: Count | None = Field(
        256, description="Tokens N of a segment B; null rewrites whole responses (SPIN)."
    )
    responses_per_prompt: Count = Field(1, description="K: segments generated per cut, each a pair of its own.")
    temperature: Annotated[float, Field(ge=0.0)] = Field(0.7, description="Sampling temperature; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.95, description="Nucleus sampling mass.")
    top_k: int = Field(50, description="Keep the k likeliest tokens; -1 keeps all.")
    after_eos: AfterEos = Field(
        "drop",
        description="B' ends with end-of-sequence: drop the suffix C (the paper's code), keep it after B' without the "
        "end token, or reject the pair.",
    )
    tensor_parallel: Count = Field(1, description="GPUs per engine, all on one node.")
    max_concurrent_requests: Count = Field(64, description="Requests in flight per actor (vLLM's max_num_seqs).")
    kv_cache_bytes: Count | None = Field(
        None, description="KV cache per engine in bytes; default 256 MiB on CPU, vLLM's own choice on GPU."
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9, description="Share of GPU memory that the engine may take."
    )
    enforce_eager: bool | None = Field(None, description="No CUDA graphs; default: true on CPU, false on GPU.")
    prefix_caching: bool = Field(True, description="Reuse the KV cache of shared prompts.")
    packed_weights: bool = Field(
        True,
        description="CPU: keep linear weights in oneDNN's layout: faster generation, slower publication.",
    )
    cpus_per_actor: PositiveFloat = Field(1.0, description="CPU cores reserved per actor.")
    engine_args: dict[str, Any] = Field(
        {},
        description="More arguments of vLLM's EngineArgs by name, such as {max_num_batched_tokens: 16384}; those that "
        "a run sets itself are rejected.",
    )

    @model_validator(mode="after")
    def _top_k(self) -> GenerationConfig:
        if self.top_k != -1 and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} keeps no token: at least 1, or -1 for all")
        return self

    @model_validator(mode="after")
    def _engine_args(self) -> GenerationConfig:
        if reason := rejection(self.engine_args):
            raise ValueError(f"engine_args.{reason}")
        return self
