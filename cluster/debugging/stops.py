"""What is printed of each phase of a step, and where the debugger is entered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from buffer.client import Draw
from buffer.messages import Finished
from cluster.reports.samples import Decode, readable
from contracts.pair import PreferencePair
from learner.messages import StepReport
from learner.model.packing import PackedBatch

Phase = Literal["write", "draw", "step", "publish"]
PHASES: tuple[Phase, ...] = get_args(Phase)
SHOWN_PAIRS = 2


class Stops:
    """Prints phases as they are over; after those that were asked for, ``breakpoint()`` is called."""

    def __init__(self, phases: Collection[Phase], decode: Decode) -> None:
        self._phases, self._decode = phases, decode
        self.step = 0
        """Optimizer steps done."""

    def written(self, finished: Sequence[Finished]) -> None:
        """Segments were completed and spliced; the actor is about to insert their pairs."""
        for done in finished:
            print(f"write: index {done.index}: {done.outcome.name.lower()}")
            if done.pair is not None:
                self._print(done.pair)
        if "write" in self._phases:
            breakpoint()  # `finished` is what the actor has made; `up` leads to the actor

    def drawn(self, pairs: Sequence[PreferencePair], draw: Draw | None, packed: Sequence[PackedBatch]) -> None:
        """A batch is about to be trained on.

        Args:
            draw: how it stood in the buffer; None where there is none.
        """
        counts = "" if draw is None else f", drawn before: {draw.draw_counts.tolist()}"
        print(f"draw: {len(pairs)} pairs: {[pair.index for pair in pairs]}{counts}")
        for pair in pairs[:SHOWN_PAIRS]:
            self._print(pair)
        for number, batch in enumerate(packed):
            print(f"  pass {number}: {describe(batch, pairs)}")
        if "draw" in self._phases:
            breakpoint()  # `pairs`, `draw` and `packed`

    def stepped(self, pairs: Sequence[PreferencePair], report: StepReport) -> None:
        """The weights have moved."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
        print(f"step {self.step}: {figures}")
        for pair, margin in list(zip(pairs, report.margins, strict=True))[:SHOWN_PAIRS]:
            print(f"  index {pair.index}: margin {margin}")
        if "step" in self._phases:
            breakpoint()  # `report` is the rank's answer; `pairs` what it was trained on

    def published(self, version: int) -> None:
        """The actor generates with new weights."""
        print(f"publish: the actor has the EMA of step {version}")
        if "publish" in self._phases:
            breakpoint()  # `version`

    def _print(self, pair: PreferencePair) -> None:
        shown = readable(pair, self._decode, self.step + 1)
        print(f"  prompt    {shown['prompt']}\n  chosen    {shown['chosen']}\n  rejected  {shown['rejected']}")


def describe(batch: PackedBatch, pairs: Sequence[PreferencePair]) -> str:
    """How a batch lies in rows: which tokens of a row each stretch shares with others."""
    rows, width = batch.input_ids.shape
    text = (
        f"{rows} row(s) of {width} tokens, {len(batch.targets)} scored, pairs {[pairs[i].index for i in batch.pairs]}"
    )
    if batch.layout is None:
        return f"{text}, padded"
    stretches = [
        f"[{s.start}:{s.stop}]"
        + (f" after [{s.shared_start}:{s.shared_stop}]" if s.shared_stop > s.shared_start else "")
        for s in batch.layout.segments
    ]
    return f"{text}: {', '.join(stretches)}"
