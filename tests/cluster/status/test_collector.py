"""A board says what the driver, the actors and the buffer do, and never waits for any of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actors.messages import ActorStatus
from buffer.messages import BufferStats
from cluster.reports.bottleneck import Machine
from cluster.reports.metrics import BY_NAME
from cluster.reports.progress import PROGRESS
from cluster.reports.run_log import RunLog
from cluster.run.callbacks import StepResult
from cluster.sources.base import Batch
from cluster.status.board import Board
from cluster.status.collector import About, Collector, Rollouts
from cluster.workers.member import Member, State
from cluster.workers.ray_calls import WorkerFailure
from contracts.pair import PreferencePair
from support.fake_workers import FakeCall, FakeCalls, FakeWorker
from support.pairs import generated

ABOUT = About("r", "/runs/r", "sapo", total_steps=100, first_step=0, attempt=1, lockstep=False)


class Exported:
    """Ray's metrics port."""

    def __init__(self) -> None:
        self.figures: dict[tuple[str, str | None], float | None] = {}

    def set(self, figures: dict[str, float | None], part: str | None = None) -> None:
        self.figures |= {(name, part): value for name, value in figures.items()}

    def refresh(self) -> None:
        pass

    def forget(self, part: str) -> None:
        self.figures = {key: value for key, value in self.figures.items() if key[1] != part}


class Driver:
    """A collector and everything around it, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = RunLog("r")
        self.posted: list[Board] = []
        self.exported = Exported()
        self.worker = FakeWorker("r-actor-0")
        self.buffer_calls: list[FakeCall] = []
        worker: Any = self.worker
        placement: Any = None
        self.member = Member("actor-0", placement, None, 0.0, worker, State.RUNNING, version=4)
        self.collector = Collector(
            ABOUT,
            self.log,
            FakeCalls(),
            self.posted.append,
            lambda: Machine(room=3),
            lambda tokens: " ".join(map(str, tokens.tolist())),
            self.exported,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )

    def watch(self) -> None:
        def ask() -> Any:
            self.buffer_calls.append(FakeCall("stats"))
            return self.buffer_calls[-1]

        self.collector.watch(Rollouts(lambda: [self.member], ask))

    def look(self, now: float, status: ActorStatus | Exception | None = None) -> Board:
        """What is shown at ``now``; the actor has answered ``status`` just before."""
        if status is not None:
            call = self.worker.last("status")
            call.fail(status) if isinstance(status, Exception) else call.answer(status)
        self.now = now
        self.collector._look()
        return self.collector.board()


def step(number: int, pairs: list[PreferencePair] | None = None, **metrics: float) -> StepResult:
    times = {"time/step_s": 2.0, "time/train_s": 1.0, "time/draw_wait_s": 1.0, "tokens/trained": 600.0}
    return StepResult(number, Batch(pairs or []), times | metrics, [0.5] * len(pairs or []))


def test_before_the_first_step_a_board_says_which_phase_of_the_start_goes_on():
    driver = Driver()
    with driver.log.activity.doing("ranks meet"):
        board = driver.collector.board()
    assert (board.doing, board.step, board.step_s, board.actors, board.buffer) == ("ranks meet", 0, None, (), None)
    assert board.left_s is None


def test_speed_waiting_and_what_is_left_are_those_of_the_last_steps():
    driver = Driver()
    driver.collector.on_step(step(1, [], **{"time/step_s": 500.0, "time/draw_wait_s": 499.0}))
    for number in range(2, 22):
        driver.collector.on_step(step(number, loss=float("nan")))
    board = driver.collector.board()
    assert (board.step, board.step_s, board.tokens_per_s, board.left_s) == (21, 2.0, 300.0, 158.0)
    assert board.learner_idle == {"pairs": 0.5, "weights": 0.0, "publication": 0.0}
    assert board.metrics["loss"] is None


def test_actors_and_buffer_are_asked_once_at_a_time_and_nobody_is_waited_for():
    driver = Driver()
    driver.watch()
    assert driver.look(10.0).actors[0].idle is None
    driver.look(11.0)  # neither has answered: neither is asked again
    assert len(driver.worker.calls) == len(driver.buffer_calls) == 1
    driver.buffer_calls[0].answer(BufferStats(size=7, capacity=9, inserted=5, identical=2))
    driver.look(20.0, ActorStatus(tokens=100, in_flight=3, idle_s=1.0))
    driver.collector.on_step(step(1))
    board = driver.look(30.0, ActorStatus(tokens=300, in_flight=4, idle_s=6.0))
    actor = board.actors[0]
    assert (actor.state, actor.version, actor.tokens, actor.in_flight) == ("running", 4, 300, 4)
    assert (actor.tokens_per_s, actor.idle) == (20.0, 0.5)
    assert board.buffer is not None and (board.buffer.size, board.buffer.inserted) == (7, 5)
    assert board.bottleneck == "learner idle 50%, actors idle 50%: generation-bound; 1 more actor(s) would balance"


def test_an_actor_that_does_not_answer_is_shown_with_its_silence():
    driver = Driver()
    driver.watch()
    driver.look(0.0)
    driver.look(10.0, ActorStatus(100, 3, 0.0))
    assert driver.look(70.0).actors[0].silent_s == 60.0
    assert driver.look(80.0, WorkerFailure("killed", died=True)).actors[0].tokens == 100


def test_actors_and_buffer_are_exported_each_under_its_name():
    driver = Driver()
    driver.watch()
    driver.look(10.0)
    driver.buffer_calls[0].answer(BufferStats(size=7, capacity=9, leased=3))
    board = driver.look(20.0, ActorStatus(tokens=100, in_flight=3, idle_s=1.0))
    driver.collector._export(board)
    exported = driver.exported.figures
    assert exported["actor/tokens", "actor-0"] == 100 and exported["actor/version", "actor-0"] == 4
    assert (exported["buffer/leased", None], exported["run/actors_running", None]) == (3, 1)
    assert {name for name, _ in exported} <= BY_NAME.keys()


def test_a_pair_is_readable_with_its_margin():
    driver = Driver()
    driver.collector.on_step(step(1, [generated(7)]))
    sample = driver.collector.board().sample
    assert sample is not None
    assert (sample["prompt"], sample["margin"], sample["step"]) == ("1 2", 0.5, 1)


def test_the_last_lines_for_an_operator_are_on_the_board():
    driver = Driver()
    driver.log.logger.debug("not for an operator")
    driver.log.logger.info("40/100  loss 0.5", extra=PROGRESS)
    driver.log.logger.warning("actor-0 failed")
    assert [(line.level, line.message) for line in driver.collector.board().events] == [("WARNING", "actor-0 failed")]


def test_a_mailbox_that_is_gone_ends_nothing():
    driver = Driver()
    boards: list[Board] = []

    def post(board: Board) -> None:
        boards.append(board)
        raise ConnectionError("the mailbox died")

    driver.collector._post = post
    driver.collector._over = SimpleNamespace(wait=lambda seconds: len(boards) == 2)  # type: ignore[assignment]
    driver.collector._run()
    assert len(boards) == 2
