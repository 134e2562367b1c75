"""``sapo eval --dry-run``: what an evaluation would do; starts no engine."""

from __future__ import annotations

from pathlib import Path

from cluster.config.sections import DataConfig
from cluster.evaluation.plan import EvaluationPlan, plan_evaluation
from contracts.errors import UserError
from learner.config import ModelConfig
from learner.model.checkpoint_config import is_quantised
from learner.model.shell import open_shell


def dry_evaluation(
    model: str, prompts: Path, check: str, *, samples: int, max_tokens: int, data: DataConfig | None = None
) -> str:
    """One line.

    Raises:
        UserError: it could not be done.
    """
    plan = plan_evaluation(model, prompts, check, max_tokens, data)
    _validate_weights(model, plan)
    longest, shortest = max(map(len, plan.prompts)), min(map(len, plan.prompts))
    return (
        f"model {model}: {len(plan.prompts)} prompts of {shortest} to {longest} tokens, each answered greedily and "
        f"{samples} times sampled by up to {max(plan.most_tokens)} tokens; scored by {check}"
    )


def _validate_weights(model: str, plan: EvaluationPlan) -> None:
    """Quantised ones are left to the engine, which knows more kinds.

    Raises:
        UserError: weights are missing, have another shape or no place: the engine would not load them.
    """
    if is_quantised(plan.architecture):
        return
    unused = open_shell(ModelConfig(path=model), plan.architecture, key="model").unused
    if unused:
        raise UserError(f"model {model}: {len(unused)} weights have no place in it, the first is {unused[0]}")
