"""The states of generation actors, without Ray: who is placed, brought to the newest weights, run, replaced."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from actors.messages import ActorStatus
from cluster.workers.actor_pool import ActorPool
from cluster.workers.control import Request
from cluster.workers.failure_policy import FailurePolicy, Limits
from cluster.workers.inbox import Inbox
from cluster.workers.member import State
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from learner.messages import Ack
from support.fake_workers import FakeCalls, FakeFactory, FakeLeases, FakeMailbox, FakeSync, FakeWorker

DIED = WorkerFailure("the process is gone", died=True)


class World:
    """A pool, and everything that it talks to."""

    def __init__(self, *, learner: bool = True, mailbox: bool = False, limits: Limits | None = None) -> None:
        self.factory, self.buffer, self.calls, self.now = FakeFactory(), FakeLeases(), FakeCalls(), 0.0
        self.sync = FakeSync() if learner else None
        self.mailbox = FakeWorker("control") if mailbox else None
        fakes: dict[str, Any] = {
            "factory": self.factory,
            "buffer": self.buffer,
            "sync": self.sync,
            "inbox": Inbox(FakeMailbox(self.mailbox), self.calls) if self.mailbox else None,
        }
        self.pool = ActorPool(
            policy=FailurePolicy(limits or Limits()),
            log=logging.getLogger("test"),
            start_timeout_s=60.0,
            calls=self.calls,
            clock=lambda: self.now,
            **fakes,
        )

    def states(self) -> dict[str, State]:
        return {name: member.state for name, member in self.pool.members.items()}

    def place(self, name: str) -> None:
        self.factory.placements[name].asked.answer()
        self.pool.poll()

    def start(self, name: str) -> None:
        self.place(name)
        self.factory.workers[name].last("ready").answer()
        self.pool.poll()

    def acknowledge(self, *names: str, version: int, error: str = "") -> None:
        """The oldest send that is under way reaches these actors."""
        assert self.sync
        send = next(call for call in self.sync.sends if not call.done)
        send.answer([Ack(name, version, 0.1, error) for name in names])
        self.pool.poll()

    def run(self, *names: str, version: int = 0) -> None:
        """Bring added actors to RUNNING with the weights of ``version``."""
        for name in names:
            self.start(name)
        self.pool.publish()
        self.acknowledge(*names, version=version)


def test_an_actor_is_placed_started_brought_to_the_newest_weights_and_run():
    world = World()
    world.pool.add(1)
    assert world.states() == {"actor-0": State.PLACING}
    world.place("actor-0")
    assert world.states() == {"actor-0": State.STARTING}
    world.factory.workers["actor-0"].last("ready").answer()
    world.pool.poll()
    assert world.states() == {"actor-0": State.READY}  # nothing has been published yet
    world.pool.publish()
    assert world.states() == {"actor-0": State.JOINING}
    assert world.pool.held_version() == -1
    world.acknowledge("actor-0", version=3)
    assert world.states() == {"actor-0": State.RUNNING}
    assert world.pool.held_version() == 3
    assert world.factory.workers["actor-0"].last("run")


def test_the_learner_is_told_of_an_actor_before_it_sends():
    world = World()
    world.pool.add(1)
    world.run("actor-0")
    world.pool.add(1)
    world.start("actor-1")
    assert world.sync and world.sync.order == ["retarget", "send"] * 2


def test_without_a_learner_an_actor_runs_at_once():
    world = World(learner=False)
    world.pool.add(1)
    world.start("actor-0")
    assert world.states() == {"actor-0": State.RUNNING}


def test_one_that_comes_late_is_sent_the_newest_weights_before_it_runs():
    world = World()
    world.pool.add(1)
    world.run("actor-0", version=1)
    world.pool.add(1)
    world.start("actor-1")
    assert world.states()["actor-1"] is State.JOINING
    assert world.sync and world.sync.targets[-1] == {"actor-0", "actor-1"}
    assert world.pool.held_version() == 1  # who joins holds nobody up
    world.acknowledge("actor-0", "actor-1", version=1)
    assert world.states()["actor-1"] is State.RUNNING


def test_the_slowest_actor_says_which_version_is_held():
    world = World()
    world.pool.add(2)
    world.run("actor-0", "actor-1", version=1)
    world.pool.publish()
    world.acknowledge("actor-0", version=2)
    assert world.pool.held_version() == 1
    world.calls.happening = [lambda: world.acknowledge("actor-1", version=2)]
    world.pool.publish()
    world.pool.wait_for_version(2)
    assert world.pool.held_version() == 2


def test_an_older_acknowledgement_takes_nothing_back():
    world = World()
    world.pool.add(1)
    world.run("actor-0", version=5)
    world.pool.publish()
    world.acknowledge("actor-0", version=4)
    assert world.pool.held_version() == 5


def test_a_dead_actor_s_work_goes_to_the_others_and_another_takes_its_place():
    world = World()
    world.pool.add(2)
    world.run("actor-0", "actor-1")
    world.factory.workers["actor-0"].last("run").fail(DIED)
    world.pool.poll()
    assert world.buffer.released == ["actor-0"]
    assert world.factory.workers["actor-0"].killed and world.factory.placements["actor-0"].removed
    assert world.states() == {"actor-1": State.RUNNING, "actor-2": State.PLACING}
    assert world.sync and world.sync.targets[-1] == {"actor-1"}


def test_an_actor_that_the_buffer_left_alone_is_kept_for_the_next_attempt():
    world = World()
    world.pool.add(1)
    world.run("actor-0")
    gone = WorkerFailure("coordinator was killed", died=True, elsewhere=True)
    world.factory.workers["actor-0"].last("run").fail(gone)
    with pytest.raises(WorkerFailure, match="coordinator was killed"):
        world.pool.poll()
    assert [member.name for member in world.pool.surrender()] == ["actor-0"]
    assert not world.factory.workers["actor-0"].killed


def test_the_third_actor_that_fails_without_progress_ends_the_run_with_its_reason():
    world = World()
    world.pool.add(1)
    for name in ("actor-0", "actor-1"):
        world.place(name)
        world.factory.workers[name].last("ready").fail(WorkerFailure("RuntimeError: no kernel", died=False))
        world.pool.poll()
    world.place("actor-2")
    world.factory.workers["actor-2"].last("ready").fail(WorkerFailure("RuntimeError: no kernel", died=False))
    with pytest.raises(
        UserError, match=r"3 failure\(s\) of actors, the last, of actor-2, with: RuntimeError: no kernel"
    ):
        world.pool.poll()


def test_actors_that_fail_between_finished_work_are_replaced_up_to_the_limit():
    world = World(limits=Limits(replacements=4))
    world.pool.add(1)
    for number in range(4):
        world.run(f"actor-{number}")
        world.buffer.inserted += 1
        world.factory.workers[f"actor-{number}"].last("run").fail(DIED)
        world.pool.poll()
    world.run("actor-4")
    world.buffer.inserted += 1
    world.factory.workers["actor-4"].last("run").fail(DIED)
    with pytest.raises(UserError, match=r"5 failure\(s\) of actors"):
        world.pool.poll()


def test_what_the_user_has_to_mend_ends_the_run_at_the_first_actor():
    world = World()
    world.pool.add(1)
    world.place("actor-0")
    world.factory.workers["actor-0"].last("ready").fail(UserError("generation: vLLM can't start an engine for m"))
    with pytest.raises(UserError, match="can't start an engine for m"):
        world.pool.poll()


def test_an_actor_that_weights_do_not_reach_is_replaced_and_the_others_run_on():
    world = World()
    world.pool.add(2)
    world.run("actor-0", "actor-1", version=1)
    world.pool.publish()
    assert world.sync
    acks = [Ack("actor-0", 2, 0.1), Ack("actor-1", 2, 0.0, "no answer within 5 s")]
    next(call for call in world.sync.sends if not call.done).answer(acks)
    world.pool.poll()
    assert world.states() == {"actor-0": State.RUNNING, "actor-2": State.PLACING}
    assert world.pool.held_version() == 2


def test_an_actor_that_dies_while_it_joins_is_replaced_when_weights_do_not_reach_it():
    world = World()
    world.pool.add(1)
    world.start("actor-0")
    world.pool.publish()
    world.acknowledge("actor-0", version=0, error="the actor died")
    assert world.states() == {"actor-1": State.PLACING}


def test_an_acknowledgement_of_an_actor_that_has_left_is_nobody_s():
    world = World()
    world.pool.add(1)
    world.run("actor-0")
    world.pool.publish()
    world.factory.workers["actor-0"].last("run").answer()  # it was asked to leave and has
    world.pool.poll()
    world.acknowledge("actor-0", version=1)
    assert world.states() == {}
    assert world.pool.held_version() == -1


def test_a_person_s_request_adds_actors_and_lets_the_newest_go():
    world = World(mailbox=True)
    world.pool.add(1)
    world.run("actor-0")
    assert world.mailbox
    world.mailbox.last("next_request").answer(Request("actors", 2))
    world.pool.poll()
    assert list(world.states()) == ["actor-0", "actor-1", "actor-2"]
    world.run("actor-1", "actor-2")
    world.mailbox.last("next_request").answer(Request("actors", -1))
    world.pool.poll()
    asked = [name for name, worker in world.factory.workers.items() if any(m == "drain" for m, _, _ in worker.calls)]
    assert asked == ["actor-2"]
    world.factory.workers["actor-2"].last("run").answer()
    world.pool.poll()
    assert "actor-2" not in world.states() and world.factory.workers["actor-2"].killed


def drained(world: World) -> list[str]:
    """Who was asked to leave, each as often as it was asked."""
    return [name for name, worker in world.factory.workers.items() for method, *_ in worker.calls if method == "drain"]


def test_who_has_no_work_yet_leaves_first_and_one_always_stays(caplog):
    world = World()
    world.pool.add(3)
    world.run("actor-0", "actor-1")
    assert world.pool.remove(1) == 1
    assert world.factory.placements["actor-2"].removed and not drained(world)
    world.pool.add(2)
    world.start("actor-3")
    assert world.pool.remove(9) == 3
    assert list(world.states()) == ["actor-0", "actor-1"]
    assert world.factory.workers["actor-3"].killed and drained(world) == ["actor-1"]
    with caplog.at_level(logging.WARNING):
        assert world.pool._resize(-2) == 0
    assert caplog.messages[-1] == "2 actor(s) asked to leave: one stays"


def test_two_that_are_asked_for_one_after_the_other_are_two():
    world = World()
    world.pool.add(3)
    world.run("actor-0", "actor-1", "actor-2")
    assert world.pool.remove(1) + world.pool.remove(1) == 2
    assert drained(world) == ["actor-1", "actor-2"]


def test_one_that_dies_while_it_leaves_is_not_replaced_and_one_that_leaves_is_not_kept():
    world = World()
    world.pool.add(3)
    world.run("actor-0", "actor-1", "actor-2")
    world.pool.remove(2)
    world.factory.workers["actor-2"].last("run").fail(DIED)
    world.pool.poll()
    assert world.buffer.released == ["actor-2"]
    assert list(world.states()) == ["actor-0", "actor-1"]
    assert [member.name for member in world.pool.surrender()] == ["actor-0"]


def test_a_run_that_no_actor_finds_a_place_in_ends_with_what_is_missing(monkeypatch):
    monkeypatch.setattr("cluster.workers.actor_pool.totals", lambda: "the cluster has CPU 2, GPU 0")
    world = World()
    world.pool.add(1)

    def an_hour_passes() -> None:
        world.now += 3600

    world.calls.happening = [an_hour_passes]
    with pytest.raises(UserError, match=r"needs \{'CPU': 1.0\}, not placed within 60 s; the cluster has CPU 2, GPU 0"):
        world.pool.wait_for_version(0)


def test_one_more_that_finds_no_place_yet_holds_nobody_up():
    world = World()
    world.pool.add(1)
    world.run("actor-0")
    world.pool.add(1)
    world.now += 120
    assert world.pool.first_done([], 0) == []
    assert world.states() == {"actor-0": State.RUNNING, "actor-1": State.PLACING}


def test_who_waits_for_something_else_looks_after_the_actors_meanwhile():
    world = World(learner=False)
    world.pool.add(1)
    other = FakeWorker("rank-0").call("step")

    def placed() -> None:
        world.factory.placements["actor-0"].asked.answer()

    def answered() -> None:
        other.answer("done")

    world.calls.happening = [placed, answered]
    while other not in world.pool.first_done([other], 1.0):
        pass
    assert world.pool.answer(other) == "done"
    assert world.states() == {"actor-0": State.STARTING}


def test_the_dead_and_those_that_stand_still_say_nothing_of_themselves():
    world = World()
    world.pool.add(3)
    world.run("actor-0", "actor-1", "actor-2")
    workers = world.factory.workers
    workers["actor-0"].failures["status"] = DIED
    workers["actor-1"].answers["status"] = "alive"
    waited: list[float] = []

    def first_done(calls: Any, timeout_s: float) -> Any:
        done = [call for call in calls if call.done]
        if not done:
            waited.append(timeout_s)
        return done

    world.calls.first_done = first_done
    assert world.pool.statuses() == ["alive"]
    assert waited == [5.0]
    assert len(world.pool.running()) == 3


def test_weights_are_not_waited_for_when_they_are_not_wanted_any_more():
    world = World()
    world.pool.add(1)
    world.run("actor-0")
    world.pool.publish()

    def later() -> None:
        world.now += 0.6

    world.calls.happening = [later] * 2
    world.pool.wait_for_version(1, unless=lambda: True)
    assert world.pool.held_version() == 0 and not world.calls.happening, "it is given a moment"


def test_all_that_are_dismissed_leave_no_process_and_no_lease():
    world = World()
    world.pool.add(2)
    world.run("actor-0")
    world.pool.dismiss_all()
    assert world.states() == {}
    assert world.factory.workers["actor-0"].killed and world.factory.placements["actor-1"].removed
    assert world.buffer.released == ["actor-0", "actor-1"]


def sleeping(world: World, *names: str, dead: str = "") -> list[str]:
    """These actors answer ``sleep``, the dead one by its death; returns who was asked, as it is asked."""
    asked: list[str] = []

    def answering(self: FakeWorker, method: str, *arguments: object, lane: str | None = None) -> Any:
        call = FakeWorker.call(self, method, *arguments, lane=lane)
        if method == "sleep":
            asked.append(self.name)
            call.fail(DIED) if self.name == dead else call.answer()
        return call

    for name in names:
        worker = world.factory.workers[name]
        worker.call = answering.__get__(worker)
    return asked


def test_on_shared_gpus_engines_start_before_the_learner_comes_and_then_sleep():
    world = World()
    world.pool.add(2)
    world.start("actor-0")
    world.place("actor-1")
    asked = sleeping(world, "actor-0", "actor-1")
    world.calls.happening = [lambda: world.factory.workers["actor-1"].last("ready").answer()]
    world.pool.clear_gpus()
    assert asked == ["actor-0", "actor-1"]


def test_on_shared_gpus_a_new_engine_starts_when_the_learner_has_left():
    world = World()
    world.pool.add(2)
    world.run("actor-0", "actor-1")
    sleeping(world, "actor-0", "actor-1", dead="actor-1")
    world.pool.clear_gpus()
    world.factory.workers["actor-1"].last("run").fail(DIED)
    world.pool.poll()
    world.place("actor-2")
    assert world.states() == {"actor-0": State.RUNNING, "actor-2": State.PLACED}
    assert "actor-2" not in world.factory.workers
    world.pool.use_gpus()
    assert world.states()["actor-2"] is State.STARTING
    world.factory.workers["actor-2"].last("ready").answer()
    world.pool.poll()
    assert world.states()["actor-2"] is State.JOINING


def test_on_shared_gpus_an_engine_that_does_not_go_to_sleep_is_replaced():
    world = World()
    world.pool.add(2)
    world.run("actor-0", "actor-1")
    sleeping(world, "actor-0")  # the other one never answers
    world.calls.happening = [lambda: None]
    world.pool.clear_gpus()
    assert world.states() == {"actor-0": State.RUNNING, "actor-2": State.PLACING}
    assert world.factory.workers["actor-1"].killed


def test_the_number_of_actors_on_shared_gpus_stays(caplog):
    world = World(mailbox=True)
    world.pool.fixed = True
    world.pool.add(1)
    world.run("actor-0")
    assert world.mailbox
    with caplog.at_level("WARNING"):
        world.mailbox.last("next_request").answer(Request("actors", 2))
        world.pool.poll()
    assert list(world.pool.members) == ["actor-0"]
    assert "2 actor(s) asked for: each shares a rank's GPU" in caplog.text


def test_shutdown_leaves_no_process_and_no_place():
    world = World()
    world.pool.add(2)
    world.start("actor-0")
    world.pool.shutdown()
    assert world.factory.workers["actor-0"].killed
    assert all(placement.removed for placement in world.factory.placements.values())


def after_a_failed_attempt() -> tuple[World, World]:
    """The world of an attempt that failed with two engines up and a third still loading, and that of the next."""
    before, after = World(), World()
    before.pool.add(2)
    before.run("actor-0", "actor-1")
    before.pool.add(1)
    before.place("actor-2")
    after.pool.adopt(before.pool.surrender())
    return before, after


def test_engines_that_are_up_serve_the_next_attempt_and_the_others_end_with_theirs():
    before, after = after_a_failed_attempt()
    before.pool.shutdown()
    assert [before.factory.workers[f"actor-{i}"].killed for i in range(3)] == [False, False, True]
    assert after.states() == {"actor-0": State.STARTING, "actor-1": State.STARTING}
    for name in ("actor-0", "actor-1"):
        after.factory.workers[name].last("adopt").answer()
    after.pool.poll()
    after.pool.publish()
    after.acknowledge("actor-0", "actor-1", version=7)
    assert after.pool.held_version() == 7
    after.pool.add(1)
    assert "actor-2" in after.pool.members, "names go on after those that are taken"


def test_an_engine_that_can_not_be_taken_over_is_replaced():
    _, after = after_a_failed_attempt()
    after.factory.workers["actor-0"].last("adopt").fail(DIED)
    after.pool.poll()
    assert after.states() == {"actor-1": State.STARTING, "actor-2": State.PLACING}
    assert after.factory.workers["actor-0"].killed


def test_a_change_that_the_loop_took_from_the_inbox_is_made_too():
    world = World(mailbox=True)
    world.pool.add(1)
    world.run("actor-0")
    assert world.mailbox and world.pool.inbox
    world.mailbox.last("next_request").answer(Request("actors", 1))
    world.pool.inbox.poll()
    world.pool.first_done([], 0)
    assert list(world.pool.members) == ["actor-0", "actor-1"]


def test_where_the_last_place_is_lost_and_fewer_are_allowed_the_attempt_ends():
    world = World()
    world.pool.fewer_after_s = 5.0
    world.pool.add(1)

    def pass_by(seconds: float) -> None:
        world.now += seconds

    pass_by(30.0)
    world.pool.first_done([], 0)  # the first place may take its time: nodes are still joining
    world.run("actor-0")
    world.factory.workers["actor-0"].last("run").fail(DIED)
    world.pool.poll()
    world.calls.happening = [lambda: pass_by(3.0)] * 2
    with pytest.raises(WorkerFailure, match="no place for any actor since 6 s"):
        world.pool.wait_for_version(1)


def test_a_sender_that_stands_still_ends_the_attempt_and_one_that_is_slow_does_not(caplog):
    caplog.set_level(logging.DEBUG)
    world = World()
    world.pool.send_limit_s = 100.0
    world.pool.add(1)
    world.run("actor-0")

    def pass_by(seconds: float) -> None:
        world.now += seconds

    assert world.sync
    for _ in range(2):  # each publication has the whole time
        world.pool.publish()
        pass_by(80.0)
        world.pool.first_done([], 0)
        world.acknowledge("actor-0", version=1)
    world.pool.publish()
    pass_by(101.0)
    with pytest.raises(WorkerFailure, match="rank-0 has sent no weights within 101 s; stacks") as failure:
        world.pool.first_done([], 0)
    assert failure.value.died
    assert "rank-0 has sent no weights for 101 s:\nin send" in caplog.text


def test_what_an_actor_does_is_in_the_log_before_it_is_given_up_where_it_still_answers(caplog):
    caplog.set_level(logging.DEBUG)
    world = World()
    world.pool.stall_s = 10.0
    world.pool.add(2)
    world.run("actor-0", "actor-1")
    stuck, silent = (world.factory.workers[name] for name in ("actor-0", "actor-1"))
    for worker in (stuck, silent):
        worker.last("status").answer(ActorStatus(5, 4, 0.0))
    world.pool.first_done([], 0)
    world.now = 10.0
    world.pool.first_done([], 0)  # both are asked again
    stuck.last("status").answer(ActorStatus(5, 4, 0.0))
    stuck.answers["stacks"] = "in a kernel"
    world.now = 30.0
    world.pool.first_done([], 0)
    assert "actor-0 stands still:\nin a kernel" in caplog.text
    assert "actor-0 running failed (nothing finished for 30 s; stacks are in run.log)" in caplog.text
    assert "actor-1 running failed (no answer for 30 s)" in caplog.text
