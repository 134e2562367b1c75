"""The sections that parts of ``cluster/`` use: data, weights, checkpoints, logging, Ray."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from contracts.section import Count, NonNegative, NonNegativeFloat, PositiveFloat, Section

RESERVED_VARIABLES = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "strftime_now",
    "chat_template",
    "conversation",
}
"""Variables of a chat template, and arguments beside it, that rendering sets itself."""


class DataSourceConfig(Section):
    """One dataset of a run that learns from several."""

    path: str = Field(min_length=1, description="File, folder or hub name, as data.path.")
    split: str = Field("train", description="Split, where the dataset has several.")
    weight: PositiveFloat = Field(1.0, description="Share of the rows drawn that are of this dataset, relative.")


class DataConfig(Section):
    """Supervised rows (prompt, response), or preference pairs for method ``offline``."""

    path: str | None = Field(
        None,
        description="JSON Lines (or an array), Parquet or Arrow file, folder of such files, folder saved by "
        "`datasets`, or hub name. JSON may be compressed (.gz, .zst).",
    )
    sources: tuple[DataSourceConfig, ...] = Field(
        (),
        description="Several datasets in place of path: a list of {path, split, weight}. Rows of each are drawn in the "
        "proportion of the weights.",
    )
    split: str = Field("train", description="Split, where the dataset of `path` has several.")
    messages_column: str = Field(
        "messages",
        description="Column of a conversation (list of {role, content}, or ShareGPT's {from, value}); a preference "
        "dataset's `chosen` serves.",
    )
    prompt_column: str = Field("prompt", description="Prompt column of prompt/completion rows.")
    completion_column: str = Field("completion", description="Completion column of prompt/completion rows.")
    chosen_column: str = Field("chosen", description="Preferred response, method `offline`.")
    rejected_column: str = Field("rejected", description="Dispreferred response, method `offline`.")
    system_column: str = Field("system", description="Column of a system turn; the conversation's own comes first.")
    tools_column: str = Field("tools", description="Column of tool descriptions, which the chat template is given.")
    turns: Literal["last", "all"] = Field(
        "last",
        description="last: the last assistant turn of a conversation is learned; all: every one, as a row of its own.",
    )
    max_length: Count = Field(2048, description="Most tokens of prompt and response together.")
    max_prompt_length: Count = Field(1792, description="Most prompt tokens of a row that is over max_length.")
    long_prompts: Literal["drop", "truncate"] = Field(
        "drop",
        description="What to do with a row over max_length whose prompt is over max_prompt_length: drop the row (the "
        "number of them is reported), or keep the prompt's last tokens (the paper's code).",
    )
    long_responses: Literal["truncate", "drop"] = Field(
        "truncate",
        description="What to do with a row over max_length in which the prompt leaves too little room: cut the "
        "response, which then has no end token (the paper's code), or drop the row. Both are counted.",
    )
    chat_template: str | None = Field(
        None,
        description="File with a Jinja chat template, for tokenizers that have none (base models). It is saved with "
        "the trained model.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables that the chat template is given, such as {enable_thinking: false}."
    )
    template_date: date = Field(
        date(2024, 7, 26),
        description="What a chat template that prints today's date prints instead, so that the same data give the same "
        "tokens on every day.",
    )
    bos: Literal["tokenizer", "template"] = Field(
        "tokenizer",
        description="tokenizer: conversations begin with one beginning-of-sequence token if the tokenizer puts one "
        "before text, whether the chat template writes it or not (the template that is saved with the model then "
        "does); template: with what the template writes.",
    )
    content_tokens: tuple[str, ...] = Field(
        (),
        description="Special tokens that texts of conversations hold on purpose, such as [THINK]. All others are plain "
        "text there.",
    )
    max_rows: Count | None = Field(
        None, description="Use only this many rows of each dataset, the first usable ones; default: all."
    )
    held_out: Annotated[float, Field(gt=0.0, le=0.5)] | str | None = Field(
        None,
        description="Rows that are evaluated and not trained on: a fraction of the data (rows with the same prompt "
        "stay together), or the path of a dataset. Loss, and on pairs the margin too, are in the metrics as eval/*.",
        json_schema_extra={"expected": "a fraction above 0 and up to 0.5, the path of a dataset, or null for none"},
    )
    held_out_rows: Count = Field(256, description="Most held-out rows that are evaluated: the first ones.")
    held_out_every: Count = Field(50, description="Optimizer steps between evaluations of the held-out rows.")
    cache_dir: str | None = Field(
        "~/.cache/sapo",
        description="Folder in which the tokens of large datasets are kept, by content; null: tokenise at every start.",
    )

    @model_validator(mode="after")
    def _validate_lengths(self) -> DataConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} leaves no room for a response: "
                f"it must be below data.max_length {self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _validate_sources(self) -> DataConfig:
        if self.path is None and not self.sources:
            raise ValueError("path: required and not given; or data.sources")
        if self.path is not None and self.sources:
            raise ValueError(f"sources: set it or data.path {self.path}, not both")
        return self

    @model_validator(mode="after")
    def _validate_template_kwargs(self) -> DataConfig:
        if taken := sorted(RESERVED_VARIABLES & self.chat_template_kwargs.keys()):
            raise ValueError(f"chat_template_kwargs {taken[0]}: data are rendered with this one set; name others")
        return self

    @property
    def all_sources(self) -> tuple[DataSourceConfig, ...]:
        """The datasets of the run, one or several."""
        return self.sources or (DataSourceConfig(path=self.path or "", split=self.split),)


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
    lora: Literal["adapters", "merged"] = Field(
        "adapters",
        description="With model.lora: adapters publishes these alone, some MB, and engines apply them to the starting "
        "model; merged publishes whole weights with the adapters in them, for models and layers that vLLM can't adapt.",
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

    every: NonNegative = Field(0, description="Optimizer steps between checkpoints; 0: none by steps.")
    minutes: NonNegativeFloat = Field(
        30.0, description="Minutes between checkpoints, after which one is due too; 0: none by time."
    )
    keep: Count = Field(2, description="How many of the newest checkpoints are kept.")
    background: bool = Field(
        True,
        description="Copy what a checkpoint holds to the host and write it while training goes on. false: training "
        "waits until it is written, and no copy is made; for hosts without room for the states of their ranks and, on "
        "the node of rank 0, for policy and EMA.",
    )
    on_error: Literal["end", "continue"] = Field(
        "end",
        description="A checkpoint can't be written (disk full, read-only): end the run, or go on training without it. "
        "Older checkpoints stay in either case.",
    )
    grace_s: PositiveFloat = Field(
        60.0,
        description="After SIGTERM or Ctrl-C: longest wait for the current step and its checkpoint, in seconds.",
    )


class EvaluationConfig(Section):
    """Evaluations beside a run, as `sapo eval --check` makes them, by an actor with an engine of its own."""

    every: NonNegative = Field(
        0,
        description="Optimizer steps between evaluations; 0: none. A checkpoint is written for each, and for one more "
        "at the end. One that is due while another is under way is skipped and counted.",
    )
    prompts: str | None = Field(None, description="JSON Lines with messages, instruction or prompt.")
    check: str | None = Field(None, description="`module:function` from (prompt, response) to a number or bool.")
    weights: Literal["ema", "policy"] = Field(
        "ema", description="What is evaluated: the moving average, or the policy."
    )
    samples: Count = Field(4, description="Sampled responses per prompt, beside a greedy one.")
    temperature: NonNegativeFloat = Field(0.7, description="Temperature of the sampled ones.")
    max_tokens: Count = Field(256, description="Longest response.")
    keep_best: Literal["greedy", "sampled"] | None = Field(
        None,
        description="Keep the checkpoint with the highest of this figure beside the newest ones; best.json names it.",
    )
    timeout_s: PositiveFloat = Field(
        1800.0, description="Longest that an evaluation may take, its start included, in seconds; then it has failed."
    )

    @model_validator(mode="after")
    def _validate_parts(self) -> EvaluationConfig:
        if self.every and not (self.prompts and self.check):
            raise ValueError(f"every {self.every}: evaluation.prompts and evaluation.check say on what; set both")
        if not self.every and (given := [k for k in ("prompts", "check", "keep_best") if getattr(self, k)]):
            raise ValueError(f"{given[0]}: nothing is evaluated while evaluation.every is 0; set it")
        return self


class RecoveryConfig(Section):
    """What is tried before failures end a run."""

    restarts: NonNegative = Field(
        5,
        description="Attempts that may fail within `within_steps`: each time a learner rank, the buffer or a node dies "
        "what died is placed anew and the run goes on from its newest checkpoint.",
    )
    replacements: NonNegative = Field(
        8,
        description="Failures of generation actors within `within_steps`. Those that fail together, with their node, "
        "are one.",
    )
    within_steps: Count = Field(1000, description="Optimizer steps over which failures are counted.")
    backoff_s: NonNegativeFloat = Field(
        2.0, description="Pause before a new attempt, in seconds; doubled for each one within `within_steps`."
    )
    stall_s: PositiveFloat = Field(
        300.0,
        description="Longest that an engine or a rank may show no progress or give no answer before it is given up, in"
        " seconds. Ten times the longest seen so far if that is more, six times this the first time.",
    )
    fewer_after_s: NonNegativeFloat | None = Field(
        None,
        description="After lost nodes have not come back within so many seconds, a new attempt begins with fewer "
        "actors or ranks, as many as fit; the next one tries the full number again. null: it waits for them as long as "
        "`cluster.start_timeout_s`. Other ranks give other rounding; other actors do not, in lockstep.",
    )
    auto_resume: bool = Field(
        False,
        description="A run that is started again under its name goes on from its newest checkpoint, as with --resume; "
        "for schedulers that submit a job again.",
    )


class LoggingConfig(Section):
    """What a run reports."""

    samples_every: NonNegative = Field(50, description="Optimizer steps between entries of samples.jsonl; 0: none.")
    samples: Count = Field(4, description="Pairs in each of those entries.")
    tensorboard: bool = Field(True, description="Write a TensorBoard log beside metrics.jsonl.")
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = Field(
        (),
        description="Services that get every step's metrics too: wandb, mlflow, trackio. Their Python packages are "
        "installed apart. A resumed run goes on under the same id there.",
    )
    project: str = Field("sapo", description="Project, or experiment, of the run in these services.")
    offline: bool = Field(
        False,
        description="Let these services write to the run folder (trackio: to its own folder on this machine) and ask "
        "no network.",
    )
    record_pairs: bool = Field(False, description="Write every drawn batch to pairs.arrow, for method replay.")
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
