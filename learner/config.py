"""The learner's configuration sections: model, objective, reference, optimizer, group, EMA."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from contracts.section import Count, Fraction, NonNegative, PositiveFloat, Section
from learner.deepspeed_arguments import rejection

PREFERENCE_OBJECTIVES = (
    "dpo",
    "dpo_norm",
    "robust",
    "ipo",
    "hinge",
    "sppo",
    "nca",
    "apo_zero",
    "apo_down",
    "simpo",
    "orpo",
    "cpo",
)
SMOOTHED_OBJECTIVES = ("dpo", "robust")
REFERENCE_FREE_OBJECTIVES = ("sft", "orpo", "simpo", "cpo")


class LoraConfig(Section):
    """Low-rank adapters (peft). With them the reference is the model with its adapters off."""

    rank: Count = Field(16, description="Rank of the adapters.")
    alpha: PositiveFloat = Field(32.0, description="Scale: the update is alpha / rank x B A.")
    dropout: Fraction = Field(0.0, description="Dropout on the adapters' input while training.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get adapters, or all-linear."
    )


class ModelConfig(Section):
    """The model that is trained and its tokenizer."""

    path: str = Field(description="Folder or hub name of the starting model (Hugging Face format).")
    tokenizer: str | None = Field(None, description="Folder or hub name of the tokenizer; default: the model's.")
    from_scratch: bool = Field(
        False, description="Draw random weights for the architecture in `path`/config.json instead of loading any."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Compute dtype of learner and engines; master weights and EMA are fp32."
    )
    add_tokens: tuple[str, ...] = Field(
        (),
        description="Special tokens that tokenizer and embeddings get beside their own, such as those of a chat "
        "template on a base model; the result's have them. Not for method sapo, which starts from such a result.",
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")
    disable_dropout: bool = Field(
        True,
        description="Train without the dropout of the model's own config, as TRL does: with it policy and reference "
        "differ before the first step. What is exported keeps the config's values. model.lora.dropout is apart.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")

    @model_validator(mode="after")
    def _validate_add_tokens(self) -> ModelConfig:
        if not all(token.strip() for token in self.add_tokens):
            raise ValueError(f"add_tokens {list(self.add_tokens)}: a token is empty; each needs a text of its own")
        if twice := [token for i, token in enumerate(self.add_tokens) if token in self.add_tokens[:i]]:
            raise ValueError(f"add_tokens {list(self.add_tokens)}: {twice[0]!r} is there twice")
        if words := [token for token in self.add_tokens if all(map(str.isalnum, token.split()))]:
            raise ValueError(
                f"add_tokens {list(self.add_tokens)}: {words[0]!r} would be cut out of every text and word that has "
                f"it: name a mark, such as '<|{words[0].strip()}|>'"
            )
        if self.add_tokens and self.lora:
            raise ValueError(
                f"add_tokens {list(self.add_tokens)}: adapters leave their embeddings untrained: set model.lora null"
            )
        return self


class ObjectiveConfig(Section):
    """The loss. Papers and formulas: learner/loss/objectives.py."""

    name: str = Field(
        "dpo",
        description=f"sft, {', '.join(PREFERENCE_OBJECTIVES)}, or an import path `package.module:function` of your "
        "own; docs/learner.md says which is which.",
    )
    beta: PositiveFloat = Field(0.1, description="Scale of the log-ratio (all but sft and orpo).")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.0, description="Assumed share of flipped preferences: conservative DPO (dpo) or its unbiased form (robust)."
    )
    orpo_lambda: PositiveFloat = Field(0.05, description="Weight of the odds-ratio term (orpo).")
    simpo_gamma: Annotated[float, Field(ge=0.0)] = Field(0.5, description="Target reward margin (simpo).")
    cpo_alpha: Annotated[float, Field(ge=0.0)] = Field(1.0, description="Weight of the likelihood term (cpo).")
    sft_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Weight of the chosen response's mean NLL added to any preference loss (RPO)."
    )

    @model_validator(mode="after")
    def _known(self) -> ObjectiveConfig:
        if ":" not in self.name and self.name not in (*PREFERENCE_OBJECTIVES, "sft"):
            raise ValueError(
                f"name {self.name!r} is unknown: one of sft, {', '.join(PREFERENCE_OBJECTIVES)}, or module:function"
            )
        if self.label_smoothing and self.name not in SMOOTHED_OBJECTIVES:
            raise ValueError(f"label_smoothing {self.label_smoothing} applies to dpo and robust alone, not {self.name}")
        return self


class ReferenceConfig(Section):
    """What the policy is compared with in objectives that have a reference."""

    mode: Literal["initial", "ema", "policy", "none"] = Field(
        "initial",
        description="initial: the frozen start; ema / policy: a copy of the EMA / policy, renewed every `interval` "
        "steps; none: for reference-free objectives.",
    )
    interval: Count = Field(108, description="Optimizer steps between renewals (ema and policy).")


class OptimizerConfig(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "rmsprop"] = Field("adamw", description="adamw, or rmsprop as in SAPO's DPO recipe.")
    lr: PositiveFloat = Field(5e-7, description="Peak learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's decay rates.")
    alpha: Fraction = Field(0.99, description="RMSprop's decay rate.")
    eps: PositiveFloat = Field(1e-8, description="Added to the denominator.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Decoupled weight decay (adamw), L2 (rmsprop)."
    )
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = Field(
        "linear", description="After the warm-up: to zero linearly or by a cosine, 1/sqrt(step), or constant."
    )
    warmup_steps: NonNegative | None = Field(None, description="Steps of linear warm-up; default: warmup_ratio of all.")
    warmup_ratio: Fraction = Field(0.1, description="Share of the steps that is warm-up.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Clip the global gradient norm.")


class LearnerConfig(Section):
    """The DeepSpeed group."""

    ranks: Count = Field(1, description="Data-parallel ranks, one Ray actor each; one GPU each where there are GPUs.")
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(
        0,
        description="ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 parameters too. bfloat16 starts "
        "at 2, which keeps fp32 masters and sums gradients in fp32.",
    )
    offload_optimizer: bool = Field(
        False,
        description="Keep all states but the weights in host memory (ZeRO 1-3); the optimizer runs there, on the cores "
        "of a GPU node.",
    )
    batch_size: Count = Field(32, description="Pairs (rows for sft) per optimizer step, over all ranks.")
    steps: NonNegative | None = Field(
        None,
        description="Optimizer steps; default: `epochs` over the data. 0 trains nothing and writes the starting model, "
        "with model.add_tokens and data.chat_template.",
    )
    epochs: PositiveFloat = Field(4.0, description="Passes over the data when steps is not given.")
    tokens_per_batch: Count = Field(
        16384, description="Most tokens per packed row, and so per forward of one rank; longer batches accumulate."
    )
    forward: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto",
        description="shared: prompt and prefix once per pair; packed: both halves, no padding; padded: one sequence a "
        "row; auto: shared where the architecture allows.",
    )
    self_check: bool = Field(
        True, description="Compare the first batch with the two-sequence forward; stop if it is off."
    )
    logits_chunk: Count = Field(1024, description="Scored tokens per chunk of head and log-softmax.")
    activation_offload: bool = Field(
        False, description="Keep what the forward saves for the backward in host memory; goes well with checkpointing."
    )
    cpus_per_rank: PositiveFloat = Field(1.0, description="CPU cores reserved per rank.")
    threads_per_rank: Count = Field(1, description="Torch threads per rank on CPU.")
    collective_timeout_s: PositiveFloat = Field(
        1800.0,
        description="Longest that a rank waits for the others in a collective, in seconds; then the group has failed. "
        "Loading does not count. Raise it where one rank writes a very large model while the others wait.",
    )
    skipped_steps: NonNegative = Field(
        3,
        description="Steps in a row that are skipped because their gradient is not finite. One more, and the run goes "
        "back to its newest checkpoint; again at the same step, and it ends. The batches are in skipped.jsonl.",
    )
    deepspeed: dict[str, Any] = Field(
        {},
        description="More of DeepSpeed's configuration, such as {zero_optimization: {reduce_bucket_size: 200000000}}; "
        "keys that a run sets itself are rejected.",
    )

    @model_validator(mode="after")
    def _deepspeed(self) -> LearnerConfig:
        if reason := rejection(self.deepspeed):
            raise ValueError(f"deepspeed.{reason}")
        return self


class EmaConfig(Section):
    """The exponential moving average (EMA) of the policy, which generates the rejected segments."""

    decay: Fraction = Field(
        0.5,
        description="Fraction kept per step: EMA = decay x EMA + (1 - decay) x policy. 0 is the policy, 1 frozen.",
    )
