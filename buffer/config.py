"""The replay buffer's configuration section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from contracts.section import Count, NonNegative, Section


class BufferConfig(Section):
    """The replay buffer: first in, first out, over shards."""

    capacity: Count = Field(2000, description="Pairs kept over all shards; the oldest leaves when it is full.")
    shards: Count = Field(1, description="Ray actors that hold the pairs; capacity must be a multiple.")
    sampler: Literal["inverse_count", "uniform", "recent"] = Field(
        "inverse_count",
        description="inverse_count: weight 1 / (draws + 1); uniform; recent: the newest pairs first.",
    )
    min_size: NonNegative = Field(0, description="Pairs before the first draw; 0: one batch.")
    inserts_per_step: Count | None = Field(
        None, description="Plan indices generated per optimizer step; default: one batch."
    )
    max_draws: NonNegative = Field(0, description="A pair drawn so often leaves the buffer; 0: no limit.")
    max_age: NonNegative = Field(
        0, description="A pair whose weights are more optimizer steps old than this leaves; 0: no limit."
    )

    @model_validator(mode="after")
    def _shards(self) -> BufferConfig:
        if self.shards > self.capacity:
            raise ValueError(f"shards {self.shards} is more than capacity {self.capacity}: at most one shard per pair")
        if self.capacity % self.shards:
            raise ValueError(f"capacity {self.capacity} is not a multiple of shards {self.shards}")
        return self
