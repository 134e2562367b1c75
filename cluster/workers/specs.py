"""What a run's ranks and actors are made of, from its config: the same whoever starts them."""

from __future__ import annotations

from actors.messages import Adapters, Backend, EngineSpec, Work
from actors.plan import Plan
from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from learner.messages import RankSpec


def rank_spec(
    config: RunConfig, total_steps: int, *, ends: tuple[int, ...], vocabulary: int = 0, adapters_alone: bool = False
) -> RankSpec:
    """Of every rank of a group.

    Args:
        ends: token ids that end a response.
        vocabulary: rows that the embeddings must have, where tokens are added.
        adapters_alone: engines get the LoRA adapters, not the weights that they are merged into.
    """
    return RankSpec(
        model=config.model,
        objective=config.objective,
        reference=config.reference,
        optimizer=config.optimizer,
        learner=config.learner,
        ema=config.ema,
        max_length=config.data.max_length,
        total_steps=total_steps,
        seed=config.seed,
        deterministic=config.repeatable_on_gpu,
        ends=ends,
        vocabulary=vocabulary,
        adapters_alone=adapters_alone,
    )


def engine_spec(
    config: RunConfig, *, ends: tuple[int, ...], backend: Backend, use_gpu: bool, adapters: Adapters | None = None
) -> EngineSpec:
    """Of every actor's engine.

    Args:
        ends: token ids that end a response.
        adapters: what is published, where it is not whole weights.
    """
    return EngineSpec(
        model=config.model.path,
        dtype=config.model.dtype,
        max_length=config.data.max_length,
        ends=ends,
        seed=config.seed,
        backend=backend,
        use_gpu=use_gpu,
        trust_remote_code=config.model.trust_remote_code,
        sleep_mode=config.cluster.colocate,
        batch_invariant=config.repeatable_on_gpu,
        adapters=adapters,
    )


def work_of(config: RunConfig, table: TokenTable) -> Work:
    """What there is to generate."""
    segment, responses = config.generation.segment_length, config.generation.responses_per_prompt
    return Work(Plan(config.seed, table.response_lengths, segment, responses, table.shares), table)
