"""A board as a person reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.reports.duration import duration, speed
from cluster.status.board import ActorLine, Board, BufferLine
from cluster.status.recent import STEPS

STALE_S = 15.0
"""Age of a board from which on it is said."""
SHOWN_ACTORS = 16
FIGURES = (
    ("loss", "loss"),
    ("rewards/margins", "margin"),
    ("rewards/accuracies", "accuracy"),
    ("grad_norm", "gradient norm"),
    ("lr", "learning rate"),
    ("eval/loss", "held-out loss"),
)
STALENESS = (
    ("staleness/mean", "steps old when a pair came in, mean"),
    ("staleness/max", "largest"),
    ("age/steps_mean", "when drawn, mean"),
    ("weights/version", "version that all actors hold"),
    ("weights/parity_mean_nats", "parity in nats"),
)
DOING = {
    "draw": "waits for pairs",
    "step": "trains",
    "publish": "gathers weights to publish",
    "wait for weights": "waits for actors to take weights",
    "checkpoint": "writes a checkpoint",
    "evaluate": "evaluates held-out rows",
}
"""What the driver is said to do; the name of a start's phase stands for itself."""


def render(board: Board, *, live: bool, clock: Callable[[], float] = time.time) -> RenderableType:
    """All of it, in as many lines as it needs.

    Args:
        live: the run goes on.
    """
    parts: list[RenderableType] = [_head(board, live=live, now=clock())]
    if board.bottleneck:
        parts.append(Text(f"balance: {board.bottleneck}", style="bold"))
    parts.append(_figures_table(board))
    if board.actors:
        parts.append(_actors(board))
    if board.sample:
        parts.append(_sample(board))
    if board.events:
        parts.append(_events(board))
    return Group(*parts)


def _head(board: Board, *, live: bool, now: float) -> Text:
    total = f"/{board.total_steps}" if board.total_steps else ""
    text = Text(f"{board.run}", style="bold")
    text.append(f"  {board.method}  step {board.step}{total}", style="not bold")
    if board.attempt > 1:
        text.append(f"  attempt {board.attempt}", style="yellow not bold")
    if board.step_s:
        text.append(f"  {speed(1 / board.step_s)}  {board.tokens_per_s:,.0f} tokens/s", style="not bold")
    if live and board.left_s is not None:
        text.append(f"  {duration(board.left_s)} left", style="not bold")
    if not live:
        text.append(f"  {board.doing} at {_clock(board.since)}", style="not bold")
    else:
        what = DOING.get(board.doing, board.doing)
        text.append(f"\nnow: {what}, since {duration(max(0.0, board.written - board.since))}", style="not bold")
        if now - board.written > STALE_S:
            text.append(f"\nits driver has said nothing for {duration(now - board.written)}", style="bold red")
    text.append(f"\n{f'{board.host}:' if board.host else ''}{board.folder}", style="not bold dim")
    return text


def _figures_table(board: Board) -> RenderableType:
    longest_first = sorted(board.learner_idle.items(), key=lambda cause: -cause[1])
    waited = "  ".join(f"{cause} {share:.0%}" for cause, share in longest_first)
    if waited:
        waited += f"  of the last {STEPS} steps' time"
    rows = [
        ("learner", _figures(board, FIGURES)),
        ("waited for", waited),
        ("weights", _figures(board, STALENESS)),
        ("buffer", _buffer(board.buffer) if board.buffer else ""),
    ]
    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        if text:
            table.add_row(Text(label, style="cyan"), text)
    return table


def _figures(board: Board, wanted: tuple[tuple[str, str], ...]) -> str:
    known = ((label, board.metrics.get(name)) for name, label in wanted)
    return "  ".join(f"{label} {value:.4g}" for label, value in known if value is not None)


def _buffer(buffer: BufferLine) -> str:
    done = buffer.inserted + buffer.identical + buffer.discarded + buffer.failed
    return (
        f"{buffer.size:,} of {buffer.capacity:,} pairs  {buffer.leased:,} being generated  of {done:,} segments "
        f"{buffer.inserted:,} inserted, {buffer.identical:,} identical, {buffer.discarded:,} discarded, "
        f"{buffer.failed:,} failed"
    )


def _actors(board: Board) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="cyan")
    for head in ("actor", "state", "version", "in flight", "tokens/s", "tokens", "idle"):
        table.add_column(head, justify="left" if head in ("actor", "state") else "right")
    for line in board.actors[:SHOWN_ACTORS]:
        table.add_row(*_actor(line))
    if more := board.actors[SHOWN_ACTORS:]:
        idle = [line.idle for line in more if line.idle is not None]
        mean = f"{sum(idle) / len(idle):.0%}" if idle else ""
        rate = sum(line.tokens_per_s for line in more)
        table.add_row(f"{len(more)} more", "", "", "", f"{rate:,.0f}", f"{sum(line.tokens for line in more):,}", mean)
    return table


def _actor(line: ActorLine) -> tuple[str, ...]:
    silent = f" (silent for {duration(line.silent_s)})" if line.silent_s > STALE_S else ""
    version = str(line.version) if line.version >= 0 else "-"
    idle = "-" if line.idle is None else f"{line.idle:.0%}"
    name, state = escape(line.name), line.state + silent
    return name, state, version, str(line.in_flight), f"{line.tokens_per_s:,.0f}", f"{line.tokens:,}", idle


def _sample(board: Board) -> RenderableType:
    sample = board.sample
    assert sample is not None
    lines = Text(f"{sample['prompt']}\n", style="dim")
    lines.append(f"chosen    {sample['chosen']}\n", style="not dim green")
    lines.append(f"rejected  {sample['rejected']}", style="not dim red")
    facts = [f"pair {sample.get('index')} of step {sample.get('step')}"]
    if sample.get("age") is not None:
        facts.append(f"weights {sample['age']} step(s) old")
    if sample.get("margin") is not None:
        facts.append(f"margin {sample['margin']}")
    return Panel(lines, title=", ".join(facts), title_align="left")


def _events(board: Board) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for event in board.events:
        style = {"WARNING": "yellow", "ERROR": "red"}.get(event.level, "")
        table.add_row(Text(_clock(event.time), style="dim"), Text(event.message, style=style))
    return table


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
