"""The driver's end of ``sapo status``: puts a board together once a second, also while the driver waits."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from cluster.reports.bottleneck import Machine, bottleneck
from cluster.reports.ray_metrics import RayMetrics
from cluster.reports.run_log import RunLog
from cluster.reports.samples import Decode, readable
from cluster.reports.trackers import finite
from cluster.run.callbacks import Callback, StepResult
from cluster.status.board import ActorLine, Board, BufferLine, EventLine
from cluster.status.recent import STEPS, ActorHistory, Figures, learner_idle, seconds_of, shares
from cluster.workers.member import Member, State
from cluster.workers.ray_calls import Call, Calls, WorkerFailure
from contracts.errors import UserError

EVERY_S = 1.0
CALLS_A_SECOND = 20
"""Most questions to actors: of hundreds, each is asked less often."""
SAMPLE_EVERY_S = 5.0
BUFFER = "buffer"
"""Its name among those who are asked."""


@dataclass(frozen=True)
class About:
    """What does not change in an attempt."""

    run: str
    folder: str
    method: str
    total_steps: int
    first_step: int
    attempt: int
    lockstep: bool


@dataclass(frozen=True)
class Rollouts:
    """What is asked of a run that generates."""

    members: Callable[[], Sequence[Member]]
    buffer_stats: Callable[[], Call]


class Collector(Callback):
    """Of one attempt. Steps come in as a callback; actors and buffer are asked by a thread of its own, which waits for
    none of them."""

    def __init__(
        self,
        about: About,
        log: RunLog,
        calls: Calls,
        post: Callable[[Board], None],
        machine: Callable[[], Machine],
        decode: Decode,
        metrics: RayMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``post`` takes a board and does not wait."""
        self._about, self._log, self._calls = about, log, calls
        self._post, self._machine, self._decode, self._metrics, self._clock = post, machine, decode, metrics, clock
        self._rollouts: Rollouts | None = None
        self._host = socket.gethostname()
        self._steps: deque[Figures] = deque(maxlen=STEPS)
        self._step = about.first_step
        self._sampled_at = -inf
        self._sample: dict[str, Any] | None = None
        self._asked: dict[str, Call] = {}
        self._asked_at: dict[str, float] = {}
        self._actors: dict[str, ActorHistory] = {}
        self._buffer: BufferLine | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on_step(self, result: StepResult) -> None:
        self._step = result.step
        self._steps.append(finite(result.metrics))
        # Supervised rows have no second response to look at.
        if result.batch.pairs and self._about.method != "sft" and self._clock() - self._sampled_at > SAMPLE_EVERY_S:
            margin = result.margins[0] if result.margins else None
            self._sample = readable(result.batch.pairs[0], self._decode, result.step, margin)
            self._sampled_at = self._clock()

    def watch(self, rollouts: Rollouts) -> None:
        """Ask actors and buffer from now on."""
        self._rollouts = rollouts

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(EVERY_S)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self._look()
                board = self.board()
                self._post(board)
                self._export(board)
            except Exception:  # Ray goes away before this thread, or the mailbox has died: the run's own affair
                continue

    def _look(self) -> None:
        """Ask who has answered, take what has come."""
        if self._rollouts is None:
            return
        now = self._clock()
        members = [member for member in self._rollouts.members() if member.state is State.RUNNING]
        every_s = max(EVERY_S, len(members) / CALLS_A_SECOND)
        asking = {member.name: member for member in members}
        for name in [name for name in self._actors if name not in asking]:
            del self._actors[name]
            self._metrics.forget(name)
        for name in (*asking, BUFFER):
            if (call := self._asked.get(name)) is not None:
                if not self._calls.first_done([call], 0):
                    continue
                del self._asked[name]
                self._take(name, call, now)
            if now - self._asked_at.get(name, -inf) >= every_s:
                self._asked_at[name] = now
                member = asking.get(name)
                self._asked[name] = member.process.call("status") if member else self._rollouts.buffer_stats()

    def _take(self, name: str, call: Call, now: float) -> None:
        try:
            answer = self._calls.answer(call)
        except (WorkerFailure, UserError):
            return  # who waits for it will say so
        if name == BUFFER:
            self._buffer = BufferLine(
                answer.size,
                answer.capacity,
                answer.leased,
                answer.inserted,
                answer.identical,
                answer.discarded,
                answer.failed,
                answer.evicted,
            )
        else:
            self._actors.setdefault(name, ActorHistory()).add(now, answer)

    def _export(self, board: Board) -> None:
        """To Prometheus: what no step's metrics say, or not often enough."""
        running = sum(line.state == State.RUNNING.value for line in board.actors)
        self._metrics.set(
            {
                "run/step": board.step,
                "run/total_steps": board.total_steps,
                "run/attempt": board.attempt,
                "run/actors_running": running,
                "run/actors_starting": len(board.actors) - running,
            }
        )
        if board.buffer:
            buffer = board.buffer
            self._metrics.set(
                {
                    "buffer/capacity": buffer.capacity,
                    "buffer/leased": buffer.leased,
                    "buffer/evicted": buffer.evicted,
                }
            )
        for line in board.actors:
            figures = {"actor/tokens": line.tokens, "actor/in_flight": line.in_flight, "actor/idle": line.idle}
            self._metrics.set(figures | {"actor/version": line.version}, part=line.name)
        self._metrics.refresh()

    def board(self) -> Board:
        """As things are now."""
        about, steps, doing = self._about, list(self._steps), self._log.activity.now
        seconds = seconds_of(steps, "time/step_s")
        actors = self._actor_lines()
        idle = [line.idle for line in actors if line.idle is not None]
        waits = ""
        if steps and (idle or self._rollouts is None):
            waits = bottleneck(shares(steps, idle), self._machine(), lockstep=about.lockstep)
        return Board(
            run=about.run,
            folder=about.folder,
            host=self._host,
            method=about.method,
            step=self._step,
            total_steps=about.total_steps,
            doing=doing.what,
            since=doing.since,
            written=self._clock(),
            attempt=about.attempt,
            step_s=seconds / len(steps) if steps else None,
            tokens_per_s=seconds_of(steps, "tokens/trained") / seconds if seconds else 0.0,
            learner_idle=learner_idle(steps),
            bottleneck=waits,
            metrics=dict(steps[-1]) if steps else {},
            buffer=self._buffer,
            actors=actors,
            events=tuple(EventLine(line.created, line.levelname, line.getMessage()) for line in self._log.newest),
            sample=self._sample,
        )

    def _actor_lines(self) -> tuple[ActorLine, ...]:
        if self._rollouts is None:
            return ()
        lines = []
        for member in self._rollouts.members():
            history = self._actors.get(member.name)
            if history is None or (newest := history.newest) is None:
                lines.append(ActorLine(member.name, member.state.value, member.version))
                continue
            lines.append(
                ActorLine(
                    member.name,
                    member.state.value,
                    member.version,
                    newest.tokens,
                    history.tokens_per_s,
                    newest.in_flight,
                    history.idle,
                    history.silent_s(self._clock()),
                )
            )
        return tuple(lines)
