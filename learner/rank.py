"""One DeepSpeed rank: a step from pairs to updated weights, and everything else that needs the weights."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore, supervised
from learner.config import (
    EmaConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from learner.loss.objectives import Metrics, Scores, resolve_objective
from learner.loss.reference import Reference
from learner.model.forward import causal_model, choose_forward
from learner.model.loading import DTYPES, load_model, refuse_lengths
from learner.model.packing import PackedBatch, pack
from learner.model.self_check import check_forward
from learner.zero import checkpoint
from learner.zero.ema import MovingAverage
from learner.zero.engine import Scorer, join_group, wrap
from learner.zero.optim import effective_stage, schedule
from learner.zero.shards import Shards
from learner.zero.weight_sink import Publisher
from learner.zero.weights import metadata, named_layers

_TWO = np.zeros(2, np.int32)
FILLER = PreferencePair(_TWO, _TWO, 0, 2, _TWO, suffix_kept=False)
FILLER_SCORE = ReferenceScore(-1, np.zeros(5, np.float32))
"""What a rank computes, with weight zero, when the others have more batches than it: collectives need all ranks."""


@dataclass(frozen=True)
class StepReport:
    """One rank's view of a step."""

    metrics: dict[str, float]
    """Means over the global batch, the same on every rank."""
    reference_scores: list[ReferenceScore | None]
    """Aligned with this rank's pairs; None where the cached ones served."""


class LearnerRank:
    """A plain class; ``cluster`` makes a Ray actor of it. Methods that say so are called on all ranks together."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        model: ModelConfig,
        objective: ObjectiveConfig,
        reference: ReferenceConfig,
        optimizer: OptimizerConfig,
        learner: LearnerConfig,
        ema: EmaConfig,
        max_length: int,
        total_steps: int,
        seed: int,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._model_config, self._learner, self.optimizer_config = model, learner, optimizer
        self._ema, self._max_length, self._seed = ema, max_length, seed
        self._objective = resolve_objective(objective)
        if self._objective.needs_reference and reference.mode == "none":
            raise UserError(f"reference.mode none: objective {objective.name} needs one: initial, ema or policy")
        unused = reference.model_copy(update={"mode": "none"})
        self._reference_config = reference if self._objective.needs_reference else unused
        self._factor = schedule(optimizer, total_steps)
        self._publisher: Publisher | None = None
        self.steps = 0
        """Optimizer steps done."""
        self.note = ""
        """Why the forward is not the shared one; empty when it is."""

    def address(self) -> tuple[str, int]:
        """(IP address, free port) for the ranks' rendezvous, asked of rank 0."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def rendezvous(self, master_address: str, master_port: int) -> None:
        """Form the process group. All ranks together."""
        threads = self._learner.threads_per_rank
        self._device = join_group(self.rank, self.world_size, master_address, master_port, threads)

    def setup(self) -> str:
        """Load the model and wrap it. All ranks together; returns ``note``.

        Raises:
            UserError: the model can't be loaded, or the forward or the lengths that are asked for do not fit it.
        """
        model = load_model(self._model_config, self._seed)
        causal = causal_model(model)
        refuse_lengths(self._model_config.path, causal.config, self._max_length)
        choice = choose_forward(causal.config, self._learner.forward)
        self._mode, self.note = choice.mode, choice.reason
        self._vocabulary = cast(nn.Embedding, causal.get_input_embeddings()).num_embeddings
        self.module = model
        self.stage_number = effective_stage(self._model_config, self._learner)
        learner = self._learner
        scorer = Scorer(model, learner.logits_chunk, self._objective.needs_prefix_grad, learner.activation_offload)
        self._engine = wrap(scorer, self._device, self._model_config, learner, self.optimizer_config)
        self.shards = Shards(self._engine, self.stage_number)
        self.average = MovingAverage(self.shards, self._ema.decay)
        self.reference = Reference(self._reference_config, self.shards, self.average, DTYPES[self._model_config.dtype])
        self.reference.start(model)
        self._checked = not self._learner.self_check
        return self.note

    def step(self, pairs: list[PreferencePair], global_pairs: int) -> StepReport:
        """One optimizer step and one of the average. All ranks together.

        Args:
            pairs: this rank's share of the global batch.
            global_pairs: size of the global batch, by which the loss is divided.

        Raises:
            UserError: loss or gradient is not finite, a token is outside the vocabulary, or the self-check failed.
        """
        started = time.monotonic()
        self._engine.train()
        fresh = self._refer(pairs)
        references = [new or pair.reference for pair, new in zip(pairs, fresh, strict=True)]
        referred = time.monotonic()
        batches = self._pack(pairs)
        if not self._checked:
            self._check(pairs, batches)
        metrics = self._reduced(*self._accumulate(batches, references, global_pairs), global_pairs)
        lr = self._set_lr()
        grad_norm = self._grad_norm()
        computed = time.monotonic()
        self._engine.step()
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        if not np.isfinite(grad_norm):
            raise UserError(f"learner: the gradient norm of step {self.steps + 1} is {grad_norm}: lower optimizer.lr")
        stepped = time.monotonic()
        self.average.update()
        averaged = time.monotonic()
        self.steps += 1
        self.reference.stepped(self.steps)
        times = {
            "time/reference_s": referred - started,
            "time/forward_backward_s": computed - referred,
            "time/optimizer_s": stepped - computed,
            "time/average_s": averaged - stepped,
        }
        return StepReport(metrics | {"grad_norm": grad_norm, "lr": lr} | times, fresh)

    def attach(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def stage(self, version: int) -> None:
        """Gather the average layer by layer and hand it to the publisher. All ranks together."""
        assert self._publisher is not None
        with self.shards.holding(self.average.values):
            layers = named_layers(self.module, self.stage_number)
            if self.rank == 0:
                self._publisher.stage(version, metadata(self.module), layers)
            else:
                for _ in layers:
                    pass

    def send(self) -> Any:
        """Send the newest staged weights; runs beside ``step``. Rank 0 alone."""
        assert self._publisher is not None
        return self._publisher.send()

    def retarget(self, actors: dict[str, Any]) -> None:
        """Send to these actors from now on. Rank 0 alone."""
        assert self._publisher is not None
        self._publisher.retarget(actors)

    @torch.no_grad()
    def score_average(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [tokens - 1] for each sequence: log-probability in nats of every token but the first, under the
        average. All ranks together."""
        records = [supervised(i, np.array(s[:1], np.int32), np.array(s[1:], np.int32)) for i, s in enumerate(sequences)]
        with self.shards.holding(self.average.values), self._evaluating():
            return [
                self._engine.module(batch.to(self._device), by_token=True).float().cpu().numpy()
                for record in records
                for batch in pack([record], 1, self._mode, chosen_only=True)
            ]

    def save(self, folder: str) -> None:
        """Write everything that a bit-exact continuation needs. All ranks together."""
        checkpoint.save(Path(folder), self)

    def load(self, folder: str) -> None:
        """Continue from ``save``. All ranks together.

        Raises:
            UserError: the checkpoint is of another number of ranks, stage or model.
        """
        checkpoint.load(Path(folder), self)

    def export(self, folder: str) -> None:
        """Write Hugging Face folders policy/ and ema/. All ranks together."""
        checkpoint.export(Path(folder), self)

    def shutdown(self) -> None:
        """Leave the process group and free the publisher's memory. All ranks together."""
        if self._publisher:
            self._publisher.shutdown()
        if dist.is_initialized():
            dist.barrier()  # a rank that leaves while another still talks aborts in gloo
            dist.destroy_process_group()

    def _pack(self, pairs: Sequence[PreferencePair]) -> list[PackedBatch]:
        only = not self._objective.needs_rejected
        batches = pack(pairs, self._learner.tokens_per_batch, self._mode, chosen_only=only)
        largest = max((int(batch.input_ids.max()) for batch in batches), default=0)
        if largest >= self._vocabulary:
            raise UserError(
                f"model.path {self._model_config.path}: token id {largest} is outside its vocabulary of "
                f"{self._vocabulary}; the tokenizer is another model's"
            )
        return batches

    @property
    def _filler(self) -> PackedBatch:
        (batch,) = pack([FILLER], 1, self._mode)
        return batch

    def _accumulate(
        self, batches: list[PackedBatch], references: Sequence[ReferenceScore | None], global_pairs: int
    ) -> tuple[Tensor, int, Metrics]:
        """Forward and backward of all batches.

        Returns:
            Summed over this rank's pairs: loss (float64 scalar), tokens, each metric (float64 scalars).
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        sums: Metrics = {}
        passes = self._longest(len(batches))
        for number in range(passes):
            self._engine.set_gradient_accumulation_boundary(number == passes - 1)
            real = number < len(batches)
            batch = (batches[number] if real else self._filler).to(self._device)
            logps = self._engine(batch)
            reference = self._reference_rows(batch, references if real else [FILLER_SCORE])
            loss, metrics = self._objective.fn(Scores(logps, batch.counts, reference))
            if not real:
                loss, metrics = logps.sum() * 0.0, {name: torch.zeros_like(v) for name, v in metrics.items()}
            # DeepSpeed averages gradients over the ranks; the global batch counts every pair once.
            self._engine.backward(loss * (self.world_size / global_pairs), scale_wrt_gas=False)
            loss_sum += loss.detach()
            for name, values in metrics.items():
                sums[name] = sums.get(name, 0.0) + values.double().sum()
        return loss_sum, sum(batch.tokens for batch in batches), sums

    def _reference_rows(self, batch: PackedBatch, references: Sequence[ReferenceScore | None]) -> Tensor | None:
        """float32 [pairs, 5]; None for objectives without a reference."""
        if not self._objective.needs_reference:
            return None
        rows = [score.logps for i in batch.pairs if (score := references[i])]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    @torch.no_grad()
    def _refer(self, pairs: Sequence[PreferencePair]) -> list[ReferenceScore | None]:
        """Reference log-probabilities of the pairs that have none of the reference's version."""
        fresh: list[ReferenceScore | None] = [None] * len(pairs)
        if not self._objective.needs_reference:
            return fresh
        version = self.reference.version
        wanted = [i for i, p in enumerate(pairs) if p.reference is None or p.reference.version != version]
        batches = self._pack([pairs[i] for i in wanted])
        passes = self._longest(len(batches))
        if passes == 0:
            return fresh
        with self.reference.active(), self._evaluating():
            for number in range(passes):
                real = number < len(batches)
                batch = batches[number] if real else self._filler
                logps = self._engine.module(batch.to(self._device))
                if real:
                    for i, row in zip(batch.pairs, logps.float().cpu().numpy(), strict=True):
                        fresh[wanted[i]] = ReferenceScore(version, row)
        return fresh

    def _check(self, pairs: list[PreferencePair], batches: list[PackedBatch]) -> None:
        if not pairs:  # this rank has none of a small batch; the others' check is a collective under ZeRO 3
            pairs, batches = [FILLER], [self._filler]
        check_forward(self.module, pairs, batches[0].to(self._device), self._mode, self._learner.logits_chunk)
        self._checked = True

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Dropout off for the time of the context."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    def _longest(self, count: int) -> int:
        """The largest ``count`` of all ranks."""
        counts = torch.tensor([count], device=self._device)
        dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return int(counts)

    def _reduced(self, loss: Tensor, tokens: int, sums: Metrics, pairs: int) -> dict[str, float]:
        """Means over the global batch, in one collective."""
        names = sorted(sums)
        values = torch.stack([loss, torch.full_like(loss, tokens), *(sums[name] for name in names)])
        dist.all_reduce(values)
        total, all_tokens, *rest = values.tolist()
        if not np.isfinite(total):
            raise UserError(
                f"learner: the loss of step {self.steps + 1} is {total}: lower optimizer.lr, or look at the batch's "
                "samples"
            )
        return {"loss": total / pairs, "tokens/trained": all_tokens} | {
            name: value / pairs for name, value in zip(names, rest, strict=True)
        }

    def _set_lr(self) -> float:
        lr = self.optimizer_config.lr * self._factor(self.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _grad_norm(self) -> float | None:
        """Stage 0 alone: DeepSpeed does not keep the norm there."""
        if self.stage_number:
            return None
        grads = [p.grad for p in self.shards.trainable if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))
