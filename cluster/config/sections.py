"""The sections that parts of ``cluster/`` use: data, weights, checkpoints, logging, Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from contracts.section import Count, NonNegative, PositiveFloat, Section


class DataConfig(Section):
    """Supervised rows (prompt, response), or preference pairs for method ``offline``."""

    path: str = Field(description="JSONL or Parquet file, folder saved by `datasets`, or hub name.")
    split: str = Field("train", description="Split, where the dataset has several.")
    messages_column: str = Field(
        "messages",
        description="Column of a conversation (list of {role, content}); a preference dataset's `chosen` serves.",
    )
    prompt_column: str = Field("prompt", description="Prompt column of prompt/completion rows.")
    completion_column: str = Field("completion", description="Completion column of prompt/completion rows.")
    chosen_column: str = Field("chosen", description="Preferred response, method `offline`.")
    rejected_column: str = Field("rejected", description="Dispreferred response, method `offline`.")
    max_length: Count = Field(2048, description="Most tokens of prompt and response together.")
    max_prompt_length: Count = Field(1792, description="Most prompt tokens of a row that is over max_length.")
    long_prompts: Literal["drop", "truncate"] = Field(
        "drop",
        description="What to do with a row over max_length whose prompt is over max_prompt_length: drop the row (the "
        "number of them is reported), or keep the prompt's last tokens (the paper's code).",
    )
    chat_template: str | None = Field(
        None,
        description="File with a Jinja chat template, for tokenizers that have none (base models). It is saved with "
        "the trained model.",
    )
    max_rows: Count | None = Field(None, description="Use only this many rows, the first usable ones; default: all.")

    @model_validator(mode="after")
    def _validate_lengths(self) -> DataConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} leaves no room for a response: "
                f"it must be below data.max_length {self.max_length}"
            )
        return self


class WeightsConfig(Section):
    """How the EMA weights reach the actors, and how old they may be."""

    max_staleness: NonNegative = Field(
        0,
        description="Most optimizer steps that the EMA weights may be old when a pair is generated with them. 0: "
        "lockstep, reproducible from the seed; above 0: generation and training overlap.",
    )
    publish_every: Count = Field(
        1,
        description="Optimizer steps between publications of weights. With N, the actors' weights are up to N - 1 "
        "steps old, which weights.max_staleness must allow.",
    )
    backend: Literal["auto", "shm", "gloo", "nccl", "ipc"] = Field(
        "auto",
        description="auto: nccl between GPUs; on CPU, and with cluster.colocate, shm where all actors share the "
        "learner's machine, else gloo. ipc: one rank and one actor that share one GPU (cluster.colocate).",
    )
    parity_every: NonNegative = Field(
        50,
        description="Publications between log-probability parity checks of the engines against the learner, which the "
        "first publication calibrates; 0: never.",
    )
    parity_factor: PositiveFloat = Field(
        3.0,
        description="How many times as far off the learner as at the start an engine may be: mean and 99 % quantile of "
        "the difference in nats per token, a floor by dtype added. An engine that is farther off is replaced.",
    )
    timeout_s: PositiveFloat = Field(
        300.0, description="Longest that a transfer may take, in seconds; then it has failed."
    )


class CheckpointConfig(Section):
    """Checkpoints in `output_dir`/`name`/checkpoints/step-N."""

    every: NonNegative = Field(0, description="Optimizer steps between checkpoints; 0: only at the end.")
    keep: Count = Field(2, description="How many of the newest checkpoints are kept.")


class LoggingConfig(Section):
    """What a run reports."""

    samples_every: NonNegative = Field(50, description="Optimizer steps between entries of samples.jsonl; 0: none.")
    samples: Count = Field(4, description="Pairs in each of those entries.")
    tensorboard: bool = Field(True, description="Write a TensorBoard log beside metrics.jsonl.")
    record_pairs: bool = Field(False, description="Write every drawn batch to pairs.parquet, for method replay.")
    verdict_every: NonNegative = Field(
        200, description="Optimizer steps between bottleneck reports (which side waits); 0: only at the end."
    )


class ClusterConfig(Section):
    """The Ray cluster that a run joins or starts, and how its parts are placed."""

    address: str | None = Field(
        None, description="Ray cluster to join; default: the one of RAY_ADDRESS, or one started on this machine."
    )
    cpus: Count | None = Field(
        None, description="CPU cores that a locally started Ray has; default: what the run needs."
    )
    learner_resources: dict[str, PositiveFloat] = Field(
        {},
        description="More Ray resources that each rank reserves, to pin it to a kind of node, such as "
        "{'accelerator_type:H100': 0.001}, which Ray gives nodes by itself, or names of your own.",
    )
    actor_resources: dict[str, PositiveFloat] = Field({}, description="The same of each generation actor.")
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Placement of the learner ranks' bundles."
    )
    colocate: bool = Field(
        False,
        description="Each rank shares its GPU with one engine, and they take turns: the engine gives its memory back "
        "while the learner steps, the learner's states wait on the host while the engine generates. Needs as many "
        "actors as ranks, and lockstep.",
    )
    dashboard: bool = Field(False, description="Start the Ray dashboard with a locally started Ray.")
    object_store_bytes: Count = Field(512 << 20, description="Object store of a locally started Ray, in bytes.")
    actor_output: bool = Field(False, description="Show on the terminal what ranks and actors print.")
    start_timeout_s: PositiveFloat = Field(
        300.0, description="Longest wait for the cluster to place the run, in seconds."
    )

    @model_validator(mode="after")
    def _validate_pins(self) -> ClusterConfig:
        for key in ("learner_resources", "actor_resources"):
            if taken := {"CPU", "GPU"} & getattr(self, key).keys():
                raise ValueError(f"{key} {sorted(taken)[0]}: a run reserves these itself; name a kind of node")
        return self
