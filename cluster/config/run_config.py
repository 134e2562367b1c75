"""One run's whole configuration, and the rules across its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import Field, model_validator

from actors.config import GenerationConfig
from buffer.config import BufferConfig
from cluster.config.sections import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    RecoveryConfig,
    WeightsConfig,
)
from cluster.config.validation_message import shown
from contracts.section import Section
from learner.config import (
    REFERENCE_FREE_OBJECTIVES,
    EmaConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReferenceConfig,
)

LARGEST_SEED = 2**32 - 1
"""NumPy's global generator, which vLLM seeds, takes no larger one."""
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""No slash and no leading dot: the folder of this name is deleted by --overwrite. Not longer: files and processes are
named after a run, with more around it."""


class RunConfig(Section):
    """One run. Every part gets the sections that it uses."""

    name: str = Field("run", pattern=RUN_NAME, description="Run folder: `output_dir`/`name`.")
    output_dir: str = Field(
        "runs", description="Where run folders are made; on a cluster, a folder that all nodes share."
    )
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(0, description="Seed of everything random.")
    deterministic: bool = Field(
        True,
        description="GPU in lockstep: engines whose tokens do not depend on what else is in the batch, and a learner "
        "whose kernels do not depend on timing, so that the run can be repeated bit for bit; slower. Changes nothing "
        "on CPU, which is so anyway, or with weights.max_staleness above 0.",
    )
    method: Literal["sapo", "sft", "offline", "replay"] = Field(
        "sapo",
        description="sapo: actors generate the pairs; sft: supervised; offline: a dataset of pairs (chosen, rejected); "
        "replay: batches of pairs recorded by `sapo generate` or logging.record_pairs. Actors run only for sapo.",
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
    evaluation: EvaluationConfig = EvaluationConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    logging: LoggingConfig = LoggingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def inserts_per_step(self) -> int:
        """Plan indices generated per optimizer step."""
        return self.buffer.inserts_per_step or self.learner.batch_size

    @property
    def repeatable_on_gpu(self) -> bool:
        """Whether kernels are chosen so that the run can be repeated; overlapped runs can't be in any case."""
        return self.deterministic and self.weights.max_staleness == 0

    @property
    def publishes_adapters(self) -> bool:
        """Whether actors get LoRA adapters to apply, not whole weights."""
        return self.method == "sapo" and self.model.lora is not None and self.weights.lora == "adapters"

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @model_validator(mode="after")
    def _validate_sections(self) -> RunConfig:
        name, mode, learner = self.objective.name, self.reference.mode, self.learner
        if name in REFERENCE_FREE_OBJECTIVES and mode != "none":
            _reject("reference.mode", mode, f"objective {name} has no reference: set none")
        if name not in REFERENCE_FREE_OBJECTIVES and ":" not in name and mode == "none":
            _reject("reference.mode", mode, f"objective {name} needs one: initial, ema or policy")
        if (self.method == "sft") != (name == "sft"):
            _reject("objective.name", name, "method sft goes with objective sft, and no other method does")
        if learner.batch_size % learner.ranks:
            _reject("learner.batch_size", learner.batch_size, f"must be a multiple of learner.ranks {learner.ranks}")
        if learner.tokens_per_batch < self.data.max_length:
            remedy = f"one response must fit: at least data.max_length {self.data.max_length}"
            _reject("learner.tokens_per_batch", learner.tokens_per_batch, remedy)
        if self.method == "replay" and self.data.path is None:
            _reject(
                "data.sources", [s.path for s in self.data.sources], "a recording is one file: name it in data.path"
            )
        if self.method == "replay" and isinstance(self.data.held_out, float):
            _reject("data.held_out", self.data.held_out, "a recording is drawn as it is: name a dataset of pairs")
        if self.method == "offline" and self.data.turns == "all":
            _reject("data.turns", "all", "a pair has one response on each side: set last")
        if learner.offload_optimizer and learner.zero_stage == 0:
            _reject("learner.offload_optimizer", True, "needs learner.zero_stage 1, 2 or 3")
        if self.method == "sapo":
            self._validate_generation()
            self._validate_buffer()
            self._validate_weights()
        return self

    def _validate_generation(self) -> None:
        if self.model.add_tokens:
            remedy = "engines start from a model that has them: run `sapo sft` with them first, start from its result"
            _reject("model.add_tokens", list(self.model.add_tokens), remedy)
        if self.model.from_scratch:
            remedy = "method sapo starts from a trained model: train one with `sapo sft`"
            _reject("model.from_scratch", True, remedy)
        generation, responses = self.generation, self.generation.responses_per_prompt
        segment = generation.segment_length
        if segment is not None and segment >= self.data.max_length:
            remedy = f"no response is so long: below data.max_length {self.data.max_length}; null rewrites whole ones"
            _reject("generation.segment_length", segment, remedy)
        if self.inserts_per_step % responses:
            remedy = f"the {self.inserts_per_step} inserts per step must be a multiple of it"
            _reject("generation.responses_per_prompt", responses, remedy)
        if responses > 1 and generation.temperature == 0:
            remedy = "greedy segments of one cut are all the same: set 1, or generation.temperature above 0"
            _reject("generation.responses_per_prompt", responses, remedy)
        if self.cluster.colocate and generation.tensor_parallel > 1:
            remedy = "an engine that shares its GPU with a rank has that one: set 1, or cluster.colocate false"
            _reject("generation.tensor_parallel", generation.tensor_parallel, remedy)

    def _validate_buffer(self) -> None:
        buffer, batch, inserts = self.buffer, self.learner.batch_size, self.inserts_per_step
        if batch > buffer.capacity:
            _reject("buffer.capacity", buffer.capacity, f"must hold a batch: at least learner.batch_size {batch}")
        if inserts > buffer.capacity:
            remedy = f"must hold what a step inserts: at least buffer.inserts_per_step {inserts}"
            _reject("buffer.capacity", buffer.capacity, remedy)
        if buffer.min_size > buffer.capacity:
            _reject("buffer.min_size", buffer.min_size, f"at most buffer.capacity {buffer.capacity}")
        if buffer.max_draws and inserts * buffer.max_draws < batch:
            remedy = f"{inserts} inserts per step can't feed batches of {batch}: at least {-(-batch // inserts)}, or 0"
            _reject("buffer.max_draws", buffer.max_draws, remedy)
        staleness = self.weights.max_staleness
        if buffer.max_age and buffer.max_age < staleness:
            remedy = f"pairs may be weights.max_staleness {staleness} steps old when generated: at least that, or 0"
            _reject("buffer.max_age", buffer.max_age, remedy)
        young = (buffer.max_age + 1 + staleness) * inserts
        if buffer.max_age and buffer.min_size > young:
            remedy = f"with buffer.max_age {buffer.max_age} no more than {young} pairs are young enough: at most that"
            _reject("buffer.min_size", buffer.min_size, remedy)

    def _validate_weights(self) -> None:
        every, staleness = self.weights.publish_every, self.weights.max_staleness
        if every - 1 > staleness:
            remedy = (
                f"the actors' weights would be {every - 1} step(s) old before the next: at most {staleness + 1} with "
                f"weights.max_staleness {staleness}"
            )
            _reject("weights.publish_every", every, remedy)
        if self.cluster.colocate and staleness:
            _reject("cluster.colocate", True, "learner and engine take turns: set weights.max_staleness 0")
        ranks, actors, backend = self.learner.ranks, self.generation.actors, self.weights.backend
        if self.cluster.colocate and ranks != actors:
            remedy = f"each rank shares its GPU with one engine: as many as learner.ranks {ranks}"
            _reject("generation.actors", actors, remedy)
        if self.cluster.colocate and backend == "nccl":
            remedy = "NCCL refuses two processes on one GPU: auto, or cluster.colocate false"
            _reject("weights.backend", backend, remedy)
        if backend == "ipc" and not (self.cluster.colocate and ranks == 1):
            remedy = "the sender's GPU must be the engine's: auto, or cluster.colocate true with learner.ranks 1"
            _reject("weights.backend", backend, remedy)
        if self.cluster.colocate and self.learner.offload_optimizer:
            remedy = "optimizer states leave the GPU anyway while the engine has it: set false"
            _reject("learner.offload_optimizer", True, remedy)


def _reject(key: str, value: object, remedy: str) -> NoReturn:
    raise ValueError(f"{key} {shown(value)}: {remedy}")
