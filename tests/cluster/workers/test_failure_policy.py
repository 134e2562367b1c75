"""What a failure means, decided from events alone."""

from __future__ import annotations

from cluster.workers.failure_policy import Action, ActorFailed, AttemptFailed, FailurePolicy, Limits
from contracts.errors import UserError


def actor(finished: int, number: int = 0, of: int = 1, cause: UserError | None = None) -> ActorFailed:
    return ActorFailed(f"actor-{number}", "running", "it broke", finished, number, of, cause)


def attempt(step: int, *, died: bool = True, broken: bool = False) -> AttemptFailed:
    return AttemptFailed("a rank died", died, step, broken)


def actions(policy: FailurePolicy, *events: ActorFailed | AttemptFailed) -> list[Action]:
    return [policy.decide(event).action for event in events]


def test_replacements_without_progress_end_the_run_and_progress_forgives():
    policy = FailurePolicy(Limits(replacements=10, without_progress=2))
    one_by_one = [actor(finished, number, number + 1) for number, finished in enumerate((0, 0, 5, 5))]
    assert actions(policy, *one_by_one) == [Action.RETRY] * 4
    decision = policy.decide(actor(5, 4, 5))
    assert decision.action is Action.RAISE
    assert str(decision.error) == "generation: 5 failure(s) of actors, the last, of actor-4, with: it broke"


def test_actors_that_die_together_with_their_node_are_no_row_and_their_replacements_are():
    policy = FailurePolicy(Limits(replacements=99, without_progress=2))
    assert actions(policy, *[actor(7, number, 8 + number) for number in range(8)]) == [Action.RETRY] * 8
    assert actions(policy, *[actor(7, number, 8 + number) for number in range(8, 16)]) == [Action.RETRY] * 8
    assert policy.decide(actor(7, 16, 24)).action is Action.RAISE


def test_one_actor_that_dies_with_each_of_several_attempts_is_no_row():
    """The buffer of each new attempt has accounted for nothing yet when the loss of an engine is noticed."""
    policy = FailurePolicy(Limits(replacements=99, restarts=99, without_progress=2))
    for step in (1, 20, 29, 40):
        assert actions(policy, attempt(step), actor(0, 0, 2)) == [Action.RESTART, Action.RETRY]


def test_replacements_are_limited_within_so_many_steps():
    policy = FailurePolicy(Limits(replacements=2))
    assert actions(policy, actor(1), actor(2, 1, 2), actor(3, 2, 3)) == [Action.RETRY, Action.RETRY, Action.RAISE]
    policy = FailurePolicy(Limits(replacements=2, window=10), inserts_per_step=4)
    one_by_one = [actor(finished, number, number + 1) for number, finished in enumerate((0, 20, 41, 62))]
    assert actions(policy, *one_by_one) == [Action.RETRY] * 4


def test_the_loss_of_a_node_is_one_failure_however_many_actors_it_had():
    now = 0.0
    policy = FailurePolicy(Limits(replacements=2), clock=lambda: now)
    node = [actor(81 + 3 * number, number, 8 + number) for number in range(8)]  # the others go on meanwhile
    assert actions(policy, *node) == [Action.RETRY] * 8
    now = 31.0
    assert actions(policy, *[actor(101, number, number + 8) for number in range(7)]) == [Action.RETRY] * 7
    now = 62.0
    assert policy.decide(actor(120, 7, 24)).action is Action.RAISE
    # One replacement after the other is another matter.
    policy = FailurePolicy(Limits(replacements=2), clock=lambda: now)
    assert actions(policy, *[actor(80 + n, n, n + 1) for n in range(3)]) == [Action.RETRY, Action.RETRY, Action.RAISE]


def test_the_user_s_own_fault_is_raised_as_it_was():
    fault = UserError("model.path m: no such folder")
    assert FailurePolicy(Limits()).decide(actor(0, cause=fault)).error is fault


def test_a_failure_begins_a_new_attempt_so_many_times_within_so_many_steps():
    policy = FailurePolicy(Limits(restarts=2))
    assert actions(policy, attempt(5), attempt(9), attempt(12)) == [Action.RESTART, Action.RESTART, Action.RAISE]
    policy = FailurePolicy(Limits(restarts=2, window=10))
    assert actions(policy, *(attempt(step) for step in range(0, 60, 6))) == [Action.RESTART] * 10


def test_each_new_attempt_within_the_window_waits_twice_as_long_up_to_a_limit():
    policy = FailurePolicy(Limits(restarts=9, backoff_s=2.0, longest_backoff_s=10.0))
    assert [policy.decide(attempt(step)).pause_s for step in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_dying_three_times_in_a_row_at_the_same_step_ends_the_run_with_the_reason():
    policy = FailurePolicy(Limits(restarts=5))
    assert actions(policy, attempt(5), attempt(5)) == [Action.RESTART] * 2
    decision = policy.decide(attempt(5))
    assert decision.action is Action.RAISE
    assert str(decision.error) == "the run failed 3 times at step 5: a rank died"


def test_an_error_that_comes_back_at_the_same_step_ends_the_run_at_once():
    policy = FailurePolicy(Limits(restarts=5))
    assert actions(policy, attempt(5), attempt(5, died=False)) == [Action.RESTART, Action.RAISE]


def test_connections_may_break_twice_at_the_same_step_by_chance_but_not_before_the_first():
    cut = attempt(5, died=False, broken=True)
    assert actions(FailurePolicy(Limits(restarts=9)), attempt(5), cut, cut) == [*[Action.RESTART] * 2, Action.RAISE]
    assert FailurePolicy(Limits()).decide(attempt(0, died=False, broken=True)).action is Action.RAISE


def test_a_run_that_was_hit_elsewhere_meanwhile_is_not_stuck_at_a_step():
    policy = FailurePolicy(Limits(restarts=99))
    assert actions(policy, *[attempt(step) for step in (5, 9) * 5]) == [Action.RESTART] * 10


def test_what_raises_before_the_first_step_ends_the_run_and_later_it_is_tried_again():
    assert FailurePolicy(Limits()).decide(attempt(0, died=False)).action is Action.RAISE
    assert FailurePolicy(Limits()).decide(attempt(0)).action is Action.RESTART
    assert FailurePolicy(Limits()).decide(attempt(5, died=False)).action is Action.RESTART
