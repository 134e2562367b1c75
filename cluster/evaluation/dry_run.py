"""``sapo eval --dry-run``: what an evaluation would do; starts no engine."""

from __future__ import annotations

from pathlib import Path

from cluster.evaluation.plan import plan_evaluation


def dry_evaluation(model: str, prompts: Path, check: str, *, samples: int, max_tokens: int) -> str:
    """One line.

    Raises:
        UserError: it could not be done.
    """
    plan = plan_evaluation(model, prompts, check, max_tokens)
    longest, shortest = max(map(len, plan.prompts)), min(map(len, plan.prompts))
    return (
        f"model {model}: {len(plan.prompts)} prompts of {shortest} to {longest} tokens, each answered greedily and "
        f"{samples} times sampled by up to {max(plan.most_tokens)} tokens; scored by {check}"
    )
