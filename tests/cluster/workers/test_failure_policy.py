"""What a failure means, decided from events alone."""

from __future__ import annotations

from cluster.workers.failure_policy import Action, ActorFailed, AttemptFailed, FailurePolicy, Limits
from contracts.errors import UserError


def actor(finished: int, cause: UserError | None = None) -> ActorFailed:
    return ActorFailed("actor-0", "running", "it broke", finished, cause)


def attempt(step: int, *, died: bool = True, resumable: bool = True) -> AttemptFailed:
    return AttemptFailed("a rank died", died, step, resumable)


def actions(policy: FailurePolicy, *events: ActorFailed | AttemptFailed) -> list[Action]:
    return [policy.decide(event).action for event in events]


def test_replacements_without_progress_end_the_run_and_progress_forgives():
    policy = FailurePolicy(Limits(replacements=10, without_progress=2))
    assert actions(policy, actor(0), actor(0), actor(5), actor(5)) == [Action.RETRY] * 4
    decision = policy.decide(actor(5))
    assert decision.action is Action.RAISE
    assert str(decision.error) == "generation: 5 actors failed, the last, actor-0, with: it broke"


def test_replacements_are_limited_over_the_run():
    policy = FailurePolicy(Limits(replacements=2))
    assert actions(policy, actor(1), actor(2), actor(3)) == [Action.RETRY, Action.RETRY, Action.RAISE]


def test_the_user_s_own_fault_is_raised_as_it_was():
    fault = UserError("model.path m: no such folder")
    assert FailurePolicy(Limits()).decide(actor(0, fault)).error is fault


def test_a_death_restarts_the_attempt_from_a_checkpoint_so_many_times():
    policy = FailurePolicy(Limits(restarts=2))
    assert actions(policy, attempt(5), attempt(9), attempt(12)) == [Action.RESTART, Action.RESTART, Action.RAISE]


def test_dying_twice_at_the_same_step_ends_the_run_with_the_reason():
    policy = FailurePolicy(Limits(restarts=5))
    assert policy.decide(attempt(5)).action is Action.RESTART
    decision = policy.decide(attempt(5))
    assert decision.action is Action.RAISE
    assert str(decision.error) == (
        "the run failed 2 times at step 5: a rank died; --resume goes on from the newest checkpoint"
    )


def test_what_raises_would_raise_again_and_without_a_checkpoint_there_is_nothing_to_go_on_from():
    assert FailurePolicy(Limits()).decide(attempt(5, died=False)).action is Action.RAISE
    decision = FailurePolicy(Limits()).decide(attempt(5, resumable=False))
    assert decision.action is Action.RAISE
    assert "--resume" not in str(decision.error)
