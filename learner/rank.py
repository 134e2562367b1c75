"""One DeepSpeed rank: a step from pairs to updated weights, and everything else that needs the weights."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from buffer.errors import UserError
from buffer.record import PreferencePair, ReferenceScore, supervised
from learner import checkpoint
from learner.average import MovingAverage
from learner.config import (
    EmaConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from learner.forward import causal_model, choose_forward, score, token_scores
from learner.loading import DTYPES, load_model
from learner.objectives import Scores, resolve_objective
from learner.optim import deepspeed_config, effective_stage, make_optimizer, schedule
from learner.packing import PackedBatch, pack
from learner.reference import Reference
from learner.selfcheck import check_forward
from learner.shards import Shards
from learner.weights import metadata, named_weights


class Publisher(Protocol):
    """What carries staged weights to the engines; lives in rank 0's process."""

    def stage(
        self, version: int, metadata: list[tuple[str, torch.dtype, tuple[int, ...]]],
        weights: Iterator[tuple[str, Tensor]],
    ) -> None: ...  # fmt: skip

    def send(self) -> Any: ...

    def retarget(self, actors: dict[str, Any]) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True)
class StepReport:
    """One rank's view of a step."""

    metrics: dict[str, float]
    """Means over the global batch, the same on every rank."""
    reference_scores: list[ReferenceScore | None]
    """Aligned with this rank's pairs; None where the cached ones served."""


class Scorer(nn.Module):
    """The module that DeepSpeed wraps: a packed batch in, log-probabilities by region out.

    DeepSpeed's hooks (gathering, micro-step counting) hang on the call of the wrapped module; calling the model
    around them would silently drop the gradients of all but the last micro-batch under ZeRO 3.
    """

    def __init__(self, model: nn.Module, chunk: int, prefix_grad: bool) -> None:
        super().__init__()
        self.model = model
        self._chunk, self._prefix_grad = chunk, prefix_grad

    def forward(self, batch: PackedBatch) -> Tensor:
        """float32 [pairs, 5]"""
        return score(self.model, batch, self._chunk, prefix_grad=self._prefix_grad).logps


class LearnerRank:
    """A plain class; ``cluster`` makes a Ray actor of it. Methods that say so are called on all ranks together."""

    def __init__(
        self, rank: int, world_size: int, *, model: ModelConfig, objective: ObjectiveConfig,
        reference: ReferenceConfig, optimizer: OptimizerConfig, learner: LearnerConfig, ema: EmaConfig,
        max_length: int, total_steps: int, seed: int,
    ) -> None:  # fmt: skip
        self.rank, self.world_size = rank, world_size
        self._model_config, self._learner, self._optimizer_config = model, learner, optimizer
        self._reference_config, self._ema = reference, ema
        self._objective = resolve_objective(objective)
        self._factor = schedule(optimizer, total_steps)
        self._seed = seed
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
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(0)  # Ray shows each rank its own GPU alone
        os.environ |= {
            "RANK": str(self.rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": master_address, "MASTER_PORT": str(master_port),
        }  # fmt: skip
        if not gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(self._learner.threads_per_rank)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False, rank=self.rank,
            world_size=self.world_size, init_method=f"tcp://{master_address}:{master_port}",
        )  # fmt: skip
        self._device = torch.device("cuda", 0) if gpu else torch.device("cpu")

    def setup(self) -> str:
        """Load the model and wrap it. All ranks together; returns ``note``.

        Raises:
            UserError: the model can't be loaded or the forward that is asked for does not fit it.
        """
        import deepspeed

        model = load_model(self._model_config, self._seed)
        choice = choose_forward(causal_model(model).config, self._learner.forward)
        self._mode, self.note = choice.mode, choice.reason
        self.module = model
        scorer = Scorer(model, self._learner.logits_chunk, self._objective.needs_prefix_grad)
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.stage_number = effective_stage(self._model_config, self._learner)
        self._engine, *_ = deepspeed.initialize(
            model=scorer.to(self._device), optimizer=make_optimizer(self._optimizer_config, trainable),
            config=deepspeed_config(self._model_config, self._learner, self._optimizer_config),
        )  # fmt: skip
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
            UserError: the loss is not finite, or the self-check failed.
        """
        started = time.monotonic()
        self._engine.train()
        batches = self._pack(pairs)
        fresh = self._refer(pairs)
        references = [pair.reference or new for pair, new in zip(pairs, fresh, strict=True)]
        if not self._checked:
            check_forward(self.module, pairs, batches[0].to(self._device), self._mode, self._learner.logits_chunk)
            self._checked = True
        passes = self._longest(len(batches))
        loss_sum = torch.zeros((), dtype=torch.float64)
        sums: dict[str, float] = {}
        for number in range(passes):
            real = number < len(batches)
            batch = (batches[number] if real else self._filler).to(self._device)
            self._engine.set_gradient_accumulation_boundary(number == passes - 1)
            loss, metrics = self._objective.fn(self._scores(batch, references if real else None))
            if not real:
                loss = loss * 0.0
            # DeepSpeed averages gradients over the ranks; the global batch counts every pair once.
            self._engine.backward(loss * (self.world_size / global_pairs), scale_wrt_gas=False)
            if real:
                loss_sum += loss.detach().double().cpu()
                for name, values in metrics.items():
                    sums[name] = sums.get(name, 0.0) + values.double().sum().item()
        tokens = sum(batch.tokens for batch in batches)
        metrics = self._reduced(loss_sum, sums, tokens, global_pairs)
        lr = self._set_lr()
        grad_norm = self._grad_norm()
        computed = time.monotonic()
        self._engine.step()
        stepped = time.monotonic()
        self.average.update()
        averaged = time.monotonic()
        self.steps += 1
        self.reference.stepped(self.steps)
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        times = {
            "time/forward_backward_s": computed - started,
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
            weights = named_weights(self.module, self.stage_number)
            if self.rank == 0:
                self._publisher.stage(version, metadata(self.module), weights)
            else:
                for _ in weights:
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
                token_scores(self.module, batch.to(self._device), self._learner.logits_chunk).float().cpu().numpy()
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
        return pack(pairs, self._learner.tokens_per_batch, self._mode, chosen_only=only)

    @property
    def _filler(self) -> PackedBatch:
        """The smallest batch: a rank that is done early keeps step with the others' collectives."""
        two = np.zeros(2, np.int32)
        (batch,) = pack([PreferencePair(two, two, 0, 2, two, False)], 1, self._mode)
        return batch

    def _scores(self, batch: PackedBatch, references: list[ReferenceScore | None] | None) -> Scores:
        logps = self._engine(batch)
        reference = None
        if self._objective.needs_reference:
            if references is None:
                reference = torch.zeros_like(logps)
            else:
                rows = np.stack([references[i].logps for i in batch.pairs])
                reference = torch.from_numpy(rows).to(logps.device)
        return Scores(logps, batch.counts, reference)

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
                logps = score(self.module, batch.to(self._device), self._learner.logits_chunk).logps
                if real:
                    for i, row in zip(batch.pairs, logps.float().cpu().numpy(), strict=True):
                        fresh[wanted[i]] = ReferenceScore(version, row)
        return fresh

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

    def _reduced(self, loss: Tensor, sums: dict[str, float], tokens: int, pairs: int) -> dict[str, float]:
        """Means over the global batch, in one collective."""
        names = sorted(sums)
        values = torch.tensor(
            [loss.item(), tokens, *(sums[n] for n in names)], dtype=torch.float64, device=self._device
        )
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
        lr = self._optimizer_config.lr * self._factor(self.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _grad_norm(self) -> float | None:
        """Stage 0 alone: DeepSpeed does not keep the norm there."""
        if self.stage_number:
            return None
        grads = [p.grad for p in self.shards.trainable if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))
