"""The run's configuration: YAML validated into frozen pydantic models, one section per part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import MarkedYAMLError, YAMLError

from actors.config import GenerationConfig
from buffer.config import BufferConfig
from cluster.config.validation_message import one_line, shown
from contracts.errors import UserError
from contracts.section import Count, NonNegative, PositiveFloat, Section
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
    max_prompt_length: Count = Field(1792, description="Most prompt tokens of a row that is over max_length.")
    long_prompts: Literal["drop", "truncate"] = Field(
        "drop",
        description="Row over max_length whose prompt is over max_prompt_length: drop the row (counted), or keep the "
        "prompt's last tokens (the paper's code).",
    )
    chat_template: str | None = Field(
        None,
        description="File with a Jinja chat template, for tokenizers that have none (base models); it is saved with "
        "the trained model.",
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
    publish_every: Count = Field(
        1, description="Optimizer steps between publications; the actors' weights grow so many less one steps old."
    )
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


RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""No slash and no leading dot: the folder of this name is deleted by --overwrite."""


class RunConfig(Section):
    """One run. Every section is handed to the part that uses it."""

    name: str = Field("run", pattern=RUN_NAME, description="Run folder: `output_dir`/`name`.")
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
        name, mode, learner = self.objective.name, self.reference.mode, self.learner
        if name in REFERENCE_FREE_OBJECTIVES and mode != "none":
            _refuse("reference.mode", mode, f"objective {name} has no reference: set none")
        if name not in REFERENCE_FREE_OBJECTIVES and ":" not in name and mode == "none":
            _refuse("reference.mode", mode, f"objective {name} needs one: initial, ema or policy")
        if (self.method == "sft") != (name == "sft"):
            _refuse("objective.name", name, "method sft goes with objective sft, and no other method does")
        if learner.batch_size % learner.ranks:
            _refuse("learner.batch_size", learner.batch_size, f"must be a multiple of learner.ranks {learner.ranks}")
        if learner.tokens_per_batch < self.data.max_length:
            remedy = f"one response must fit: at least data.max_length {self.data.max_length}"
            _refuse("learner.tokens_per_batch", learner.tokens_per_batch, remedy)
        if learner.offload_optimizer and learner.zero_stage == 0:
            _refuse("learner.offload_optimizer", True, "needs learner.zero_stage 1, 2 or 3")
        if self.method == "sapo":
            self._generation_combinations()
            self._buffer_combinations()
            self._weights_combinations()
        return self

    def _generation_combinations(self) -> None:
        if self.model.from_scratch:
            remedy = "method sapo starts from a trained model: train one with `sapo sft`"
            _refuse("model.from_scratch", True, remedy)
        generation, responses = self.generation, self.generation.responses_per_prompt
        segment = generation.segment_length
        if segment is not None and segment >= self.data.max_length:
            remedy = f"no response is so long: below data.max_length {self.data.max_length}; null rewrites whole ones"
            _refuse("generation.segment_length", segment, remedy)
        if self.inserts_per_step % responses:
            remedy = f"the {self.inserts_per_step} inserts per step must be a multiple of it"
            _refuse("generation.responses_per_prompt", responses, remedy)
        if responses > 1 and generation.temperature == 0:
            remedy = "greedy segments of one cut are all the same: set 1, or generation.temperature above 0"
            _refuse("generation.responses_per_prompt", responses, remedy)
        if self.cluster.colocate and generation.tensor_parallel > 1:
            remedy = "an engine that shares its GPU with a rank has that one: set 1, or cluster.colocate false"
            _refuse("generation.tensor_parallel", generation.tensor_parallel, remedy)

    def _buffer_combinations(self) -> None:
        buffer, batch, inserts = self.buffer, self.learner.batch_size, self.inserts_per_step
        if batch > buffer.capacity:
            _refuse("buffer.capacity", buffer.capacity, f"must hold a batch: at least learner.batch_size {batch}")
        if inserts > buffer.capacity:
            remedy = f"must hold what a step inserts: at least buffer.inserts_per_step {inserts}"
            _refuse("buffer.capacity", buffer.capacity, remedy)
        if buffer.min_size > buffer.capacity:
            _refuse("buffer.min_size", buffer.min_size, f"at most buffer.capacity {buffer.capacity}")
        if buffer.max_draws and inserts * buffer.max_draws < batch:
            remedy = f"{inserts} inserts per step can't feed batches of {batch}: at least {-(-batch // inserts)}, or 0"
            _refuse("buffer.max_draws", buffer.max_draws, remedy)
        staleness = self.weights.max_staleness
        if buffer.max_age and buffer.max_age < staleness:
            remedy = f"pairs may be weights.max_staleness {staleness} steps old when written: at least that, or 0"
            _refuse("buffer.max_age", buffer.max_age, remedy)
        young = (buffer.max_age + 1 + staleness) * inserts
        if buffer.max_age and buffer.min_size > young:
            remedy = f"with buffer.max_age {buffer.max_age} no more than {young} pairs are young enough: at most that"
            _refuse("buffer.min_size", buffer.min_size, remedy)

    def _weights_combinations(self) -> None:
        every, staleness = self.weights.publish_every, self.weights.max_staleness
        if every - 1 > staleness:
            remedy = (
                f"the actors' weights would be {every - 1} step(s) old before the next: at most {staleness + 1} with "
                f"weights.max_staleness {staleness}"
            )
            _refuse("weights.publish_every", every, remedy)
        if self.cluster.colocate and staleness:
            _refuse("cluster.colocate", True, "learner and engine take turns: set weights.max_staleness 0")
        ranks, actors = self.learner.ranks, self.generation.actors
        if self.cluster.colocate and (ranks, actors) != (1, 1):
            remedy = f"one rank and one engine share a GPU: learner.ranks {ranks} and generation.actors {actors} to 1"
            _refuse("cluster.colocate", True, remedy)


def _refuse(key: str, value: object, remedy: str) -> NoReturn:
    raise ValueError(f"{key} {shown(value)}: {remedy}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``key.sub=value`` overrides, validate.

    Raises:
        ConfigError: one line that names the file or key, the value and what would be right.
    """
    path = Path(path)
    merged = _read_yaml(path)
    for override in overrides:
        merged = _overridden(merged, override)
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return validate_config({str(key): value for key, value in values.items()}, str(path))


def validate_config(values: dict[str, Any], source: str) -> RunConfig:
    """Validate plain values; errors name ``source``."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {one_line(error.errors(), RunConfig)}") from error


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: a folder; a YAML file is expected") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    except OSError as error:  # OmegaConf's own complaint about a lone scalar is one of these, without an errno
        reason = error.strerror or "a mapping of sections is expected, found a single value"
        raise ConfigError(f"{path}: {reason}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: a mapping of sections is expected, found a list")
    return loaded


def _overridden(config: DictConfig, override: str) -> DictConfig:
    key, assigned, _ = override.partition("=")
    if not assigned or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: write it as key.sub=value")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except MarkedYAMLError as error:
        raise ConfigError(f"override {override!r}: not YAML: {error.problem}") from error
    except (OmegaConfBaseException, YAMLError, TypeError) as error:  # TypeError: a list in place of a section
        raise ConfigError(f"override {override!r}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return merged
