"""The run's configuration: YAML validated into frozen pydantic models, one section per part."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import YAMLError

from actors.config import GenerationConfig
from buffer.config import BufferConfig, Count, NonNegative, PositiveFloat, Section
from buffer.errors import UserError
from learner.config import (
    REFERENCE_FREE_OBJECTIVES,
    EmaConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReferenceConfig,
)


class ConfigError(UserError):
    """The configuration can't be run; the message is one line that names key, value and remedy."""


class DataConfig(Section):
    """Supervised rows (prompt, response), or given preference pairs for the offline methods."""

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
    max_prompt_length: Count = Field(1792, description="Most prompt tokens.")
    long_prompts: Literal["drop", "truncate"] = Field(
        "drop", description="Prompt over max_prompt_length: drop the row (counted), or keep its last tokens."
    )
    max_rows: Count | None = Field(None, description="Use the first so many usable rows.")

    @model_validator(mode="after")
    def _lengths(self) -> DataConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} leaves no room for a response: "
                f"it must be below data.max_length {self.max_length}"
            )
        return self


class WeightsConfig(Section):
    """How the average's weights reach the actors, and how old they may be."""

    max_staleness: NonNegative = Field(
        0,
        description="How many optimizer steps old the average behind a pair may be when it is generated. 0: lockstep, "
        "reproducible from the seed; above: generation and training overlap.",
    )
    publish_every: Count = Field(1, description="Optimizer steps between publications.")
    backend: Literal["auto", "shm", "gloo", "nccl", "ipc"] = Field(
        "auto",
        description="auto: nccl on GPUs, shm where all actors share the learner's machine, else gloo. ipc: learner and "
        "actor on one GPU.",
    )
    canary_every: NonNegative = Field(
        50, description="Publications between checks of the engines' log-probabilities against the learner's; 0: never."
    )
    canary_tolerance: PositiveFloat = Field(
        0.05, description="Largest difference in nats per token that the canary accepts."
    )
    timeout_s: PositiveFloat = Field(300.0, description="A transfer that takes longer has failed.")


class CheckpointConfig(Section):
    """Checkpoints under runs/NAME/checkpoints/step-N."""

    every: NonNegative = Field(0, description="Optimizer steps between checkpoints; 0: only at the end.")
    keep: Count = Field(2, description="Newest checkpoints kept.")


class LoggingConfig(Section):
    """What a run reports."""

    samples_every: NonNegative = Field(50, description="Steps between samples.jsonl entries; 0: none.")
    samples: Count = Field(4, description="Pairs per entry.")
    tensorboard: bool = Field(True, description="Write a TensorBoard log beside metrics.jsonl.")
    record_pairs: bool = Field(False, description="Write every drawn batch to pairs.parquet, for method replay.")
    verdict_every: NonNegative = Field(
        200, description="Steps between verdicts on who waits for whom; 0: at the end alone."
    )


class ClusterConfig(Section):
    """Ray."""

    address: str | None = Field(
        None, description="Ray cluster to join; default: RAY_ADDRESS, or one started on this machine."
    )
    cpus: Count | None = Field(
        None, description="Cores that a locally started Ray may count on; default: what the run needs."
    )
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Placement of the learner ranks' bundles."
    )
    colocate: bool = Field(
        False, description="Learner and engine share one GPU, taking turns (engine sleeps while the learner steps)."
    )
    dashboard: bool = Field(False, description="Start the Ray dashboard with a locally started Ray.")
    object_store_bytes: Count = Field(512 << 20, description="Object store of a locally started Ray, in bytes.")
    actor_output: bool = Field(False, description="Show what ranks and actors print on the terminal.")
    start_timeout_s: PositiveFloat = Field(300.0, description="Longest wait for the cluster to place the run.")


class RunConfig(Section):
    """One run. Every section is handed to the part that uses it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="Run folder: `output_dir`/`name`.")
    output_dir: str = Field(
        "runs", description="Where run folders are made; on a cluster, a folder that all nodes share."
    )
    seed: NonNegative = Field(0, description="Seed of everything random.")
    method: Literal["sapo", "sft", "offline", "replay"] = Field(
        "sapo",
        description="sapo: pairs written by actors; sft: supervised; offline: given pairs (chosen, rejected); replay: "
        "pairs recorded by `sapo generate` or logging.record_pairs, batch by batch, no actors.",
    )
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    generation: GenerationConfig = GenerationConfig()
    buffer: BufferConfig = BufferConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    learner: LearnerConfig = LearnerConfig()
    ema: EmaConfig = EmaConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def inserts_per_step(self) -> int:
        """Plan indices generated per optimizer step."""
        return self.buffer.inserts_per_step or self.learner.batch_size

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @model_validator(mode="after")
    def _combinations(self) -> RunConfig:
        refuse = _refuse
        name = self.objective.name
        if name in REFERENCE_FREE_OBJECTIVES and self.reference.mode != "none":
            refuse("reference.mode", self.reference.mode, f"objective {name} has no reference: set none")
        if name not in REFERENCE_FREE_OBJECTIVES and ":" not in name and self.reference.mode == "none":
            refuse("reference.mode", "none", f"objective {name} needs one: initial, ema or policy")
        if (self.method == "sft") != (name == "sft"):
            refuse("objective.name", name, "method sft goes with objective sft, and no other method does")
        if self.learner.batch_size % self.learner.ranks:
            refuse(
                "learner.batch_size",
                self.learner.batch_size,
                f"must be a multiple of learner.ranks {self.learner.ranks}",
            )
        if self.learner.tokens_per_batch < self.data.max_length:
            refuse(
                "learner.tokens_per_batch",
                self.learner.tokens_per_batch,
                f"one response must fit: at least data.max_length {self.data.max_length}",
            )
        if self.learner.offload_optimizer and self.learner.zero_stage == 0:
            refuse("learner.offload_optimizer", True, "needs learner.zero_stage 1, 2 or 3")
        if self.method == "sapo":
            self._sapo_combinations()
        return self

    def _sapo_combinations(self) -> None:
        refuse = _refuse
        segment = self.generation.segment_length
        if segment is not None and segment > self.data.max_length:
            refuse("generation.segment_length", segment, f"longer than data.max_length {self.data.max_length}")
        if self.learner.batch_size > self.buffer.capacity:
            refuse(
                "buffer.capacity",
                self.buffer.capacity,
                f"must hold a batch: at least learner.batch_size {self.learner.batch_size}",
            )
        if self.buffer.min_size > self.buffer.capacity:
            refuse("buffer.min_size", self.buffer.min_size, f"more than buffer.capacity {self.buffer.capacity}")
        if self.inserts_per_step % self.generation.responses_per_prompt:
            refuse(
                "generation.responses_per_prompt",
                self.generation.responses_per_prompt,
                f"the {self.inserts_per_step} inserts per step must be a multiple of it",
            )
        if self.weights.publish_every > max(1, self.weights.max_staleness):
            refuse(
                "weights.publish_every",
                self.weights.publish_every,
                f"weights would grow older than weights.max_staleness {self.weights.max_staleness}: at most that",
            )
        if self.cluster.colocate and self.weights.max_staleness:
            refuse("cluster.colocate", True, "learner and engine take turns: set weights.max_staleness 0")


def _refuse(key: str, value: object, remedy: str) -> None:
    raise ValueError(f"{key} {value}: {remedy}")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply ``key.sub=value`` overrides, validate.

    Raises:
        ConfigError: one line that names the file or key, the value and what would be right.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override {override!r}: write it as key.sub=value")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, found {type(values).__name__}")
    return validate_config(values, str(path))


def validate_config(values: dict, source: str) -> RunConfig:
    """Validate plain values; errors name ``source``."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    """The first error as `key value: what would be right`, and how many more there are."""
    errors = error.errors()
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            text = f"{key}: unknown key; `sapo config` lists the known ones"
        case "missing":
            text = f"{key}: required and not given"
        case "value_error":
            text = f"{key}.{message}" if key else message
        case _:
            text = f"{key} {first['input']!r}: {message[0].lower()}{message[1:]}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
