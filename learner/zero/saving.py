"""What a rank writes for a checkpoint: copied to the host between two steps, and written beside the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from contracts.background import flush, in_background
from contracts.errors import UserError, first_line
from learner.model.adapters import is_adapter
from learner.model.forward import causal_model
from learner.zero import checkpoint
from learner.zero.checkpoint import Layout, RankState, on_host
from learner.zero.ema import Ema
from learner.zero.export import configuration_files, save_model, saved_metadata
from learner.zero.shards import Shards, gathered
from learner.zero.weights import named_weights

Write = Callable[[], None]
"""Writes some files."""
STATE_FOLDER = "learner"
"""In a checkpoint: what all ranks need to go on."""


class CheckpointWriter:
    """Of one rank. Rank 0 writes policy and EMA too."""

    def __init__(self, rank: int, module: nn.Module, shards: Shards, ema: Ema, ends: Sequence[int]) -> None:
        """``ends``: token ids that end a response, for generation_config.json."""
        self._rank, self._module, self._shards, self._ema = rank, module, shards, ema
        if rank == 0:
            self._configuration = configuration_files(causal_model(module), ends)
            self._announced = saved_metadata(module)
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    def begin(self, folder: Path, layout: Layout, state: RankState, *, background: bool) -> None:
        """Take what the checkpoint in ``folder`` needs of this rank. All ranks together, and no rank raises alone.

        Args:
            background: write from copies, in a thread. Otherwise everything is written when this returns, tensor by
                tensor, and no copy of the whole is made.
        """
        wait_for_futures([self._writing])  # one at a time; whoever wanted that one is told of its errors by ``wait``
        work: list[Write] = []
        at_once = _AtOnce()
        take: Callable[[Write], None] = work.append if background else at_once
        states = state.on_host() if background else state
        take(partial(checkpoint.save, folder / STATE_FOLDER, self._rank, layout, states))
        self._take_model(folder / "policy", take, background)
        with self._shards.holding(self._ema.values):
            self._take_model(folder / "ema", take, background)
        self._folder = folder
        self._writing = in_background(partial(_each, work), "checkpoint") if background else at_once.answer()

    def wait(self) -> None:
        """Until everything is on the disk.

        Raises:
            UserError: it could not be written.
        """
        try:
            self._writing.result()
        except (OSError, SafetensorError) as error:
            raise UserError(f"learner rank {self._rank}: {self._folder}: {first_line(error)}") from error

    def _take_model(self, folder: Path, take: Callable[[Write], None], background: bool) -> None:
        """The weights that the module has now."""
        writes, stage = self._rank == 0, self._shards.zero_stage
        weights = named_weights(self._module, stage)
        if writes:
            wanted = {name for name, *_ in self._announced}
            kept: Iterable[tuple[str, Tensor]] = (entry for entry in weights if entry[0] in wanted)
            if background:
                kept = [(name, on_host(tensor)) for name, tensor in kept]
            take(partial(self._write_model, folder, kept))
        for _ in weights:  # rank 0 has left none, unless it failed; the others gather with it
            pass
        if hasattr(self._module, "peft_config"):
            adapters = {name: p for name, p in self._module.named_parameters() if is_adapter(name)}
            with gathered(list(adapters.values()), stage):
                if writes:
                    copies = {name: on_host(adapter) for name, adapter in adapters.items()}
                    take(partial(self._write_adapter, folder / "adapter", copies))

    def _write_model(self, folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
        save_model(folder, self._configuration, self._announced, weights)
        _flush_files(folder)

    def _write_adapter(self, folder: Path, adapters: dict[str, Tensor]) -> None:
        adapted: Any = self._module
        adapted.save_pretrained(folder, state_dict=adapters, save_embedding_layers=False)
        _flush_files(folder)


class _AtOnce:
    """Does what it is called with. An error is kept for the answer, and no more is done."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __call__(self, write: Write) -> None:
        if self._error is None:
            try:
                write()
            except Exception as error:
                self._error = error

    def answer(self) -> Future[None]:
        """As ``in_background`` gives it."""
        answer: Future[None] = Future()
        if self._error is None:
            answer.set_result(None)
        else:
            answer.set_exception(self._error)
        return answer


def _each(work: list[Write]) -> None:
    """Do it in order, and let go of each part's copies when it is written."""
    while work:
        work.pop(0)()


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
