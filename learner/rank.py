"""One DeepSpeed rank: a step from pairs to updated weights, and everything else that needs the weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from contracts.errors import UserError, first_line
from contracts.pair import PreferencePair
from contracts.ports import free_port
from contracts.spans import span
from contracts.stacks import stacks
from learner.config import ObjectiveConfig
from learner.loss.objectives import resolve_objective
from learner.loss.reference import Reference
from learner.messages import SKIPPED, Ack, Address, RankSpec, StepReport
from learner.model.forward import causal_model, choose_forward
from learner.model.loading import DTYPES, load_model, validate_length, validate_token_ids
from learner.model.packing import PackedBatch
from learner.model.self_check import check_forward
from learner.passes import FILLER, Passes
from learner.zero import checkpoint
from learner.zero.checkpoint import Layout, RankState
from learner.zero.determinism import naming_the_switch
from learner.zero.ema import Ema
from learner.zero.engine import Scorer, initialize, join_group, take_optimizer_step
from learner.zero.optim import effective_zero_stage, schedule
from learner.zero.residence import Residence
from learner.zero.saving import STATE_FOLDER, CheckpointWriter
from learner.zero.shards import Shards
from learner.zero.weight_sink import WeightSink
from learner.zero.weights import adapter_layers, adapter_metadata, metadata, named_layers, validate_publishable

if TYPE_CHECKING:
    from ray.actor import ActorHandle


logger = logging.getLogger(__name__)


class LearnerRank:
    """A plain class; ``cluster`` makes a Ray actor of it. Methods that say so are called on all ranks together."""

    def __init__(
        self, rank: int, world_size: int, spec: RankSpec, make_sink: Callable[[], WeightSink] | None = None
    ) -> None:
        """
        Args:
            make_sink: makes what carries the weights to the engines; called on rank 0 alone. None where none run.

        Raises:
            UserError: the objective needs a reference, or can't be imported.
        """
        self.rank, self.world_size = rank, world_size
        self._spec, self._make_sink = spec, make_sink
        self._objective = resolve_objective(spec.objective)
        if self._objective.needs_reference and spec.reference.mode == "none":
            raise UserError(f"reference.mode none: objective {spec.objective.name} needs one: initial, ema or policy")
        self._lr_factor = schedule(spec.optimizer, spec.total_steps)
        self.sink: WeightSink | None = None
        """On rank 0 from the end of ``setup`` on."""
        self.steps = 0
        """Optimizer steps done."""
        self.note = ""
        """Why the forward is not the shared one; empty when it is."""

    def __repr__(self) -> str:
        """As Ray's dashboard and log prefixes name it."""
        return f"learner rank {self.rank} of {self.world_size} ({self._spec.objective.name})"

    def address(self) -> Address:
        """For the ranks' rendezvous, asked of rank 0."""
        import ray

        return Address(ray.util.get_node_ip_address(), free_port())

    def rendezvous(self, host: str, port: int) -> None:
        """Form the process group. All ranks together."""
        spec = self._spec
        self._device = join_group(self.rank, self.world_size, host, port, spec.learner, spec.deterministic)

    def load_weights(self) -> None:
        """Download and load the model on rank 0; the others make its skeleton. No rank waits for another, so it may
        take one as long as it takes.

        Raises:
            UserError: the model can't be loaded.
        """
        spec = self._spec
        self.module = load_model(spec.model, spec.seed, spec.vocabulary, values=self.rank == 0)

    def setup(self) -> str:
        """Start the engine with the loaded model. All ranks together; returns ``note``.

        Raises:
            UserError: the forward or the length that is asked for does not fit the model.
        """
        spec, learner, objective = self._spec, self._spec.learner, self._objective
        validate_publishable(self.module)
        causal = causal_model(self.module)
        validate_length(spec.model.path, causal.config, spec.max_length)
        choice = choose_forward(causal.config, learner.forward)
        self._mode, self.note = choice.mode, choice.reason
        embeddings = causal.get_input_embeddings()
        embeddings = getattr(embeddings, "base_layer", embeddings)  # without its adapters
        self._vocabulary = cast(nn.Embedding, embeddings).num_embeddings
        self.zero_stage = effective_zero_stage(spec.model, learner)
        scorer = Scorer(self.module, learner.logits_chunk, objective.needs_prefix_grad, learner.activation_offload)
        self._engine = initialize(scorer, self._device, spec.model, learner, spec.optimizer)
        self._passes = Passes(self._engine, objective, self._mode, learner.tokens_per_batch, self._device)
        self.shards = Shards(self._engine, self.zero_stage)
        self.ema = Ema(self.shards, spec.ema.decay)
        unused = spec.reference.model_copy(update={"mode": "none"})
        reference = spec.reference if objective.needs_reference else unused
        self.reference = Reference(reference, self.module, self.shards, self.ema, DTYPES[spec.model.dtype])
        self._residence = Residence(self._device, self._engine, self.shards, self.ema, self.reference)
        self._writer = CheckpointWriter(self.rank, self.module, self.shards, self.ema, spec.ends)
        self._checked = not learner.self_check
        if self._make_sink is not None and self.rank == 0:
            # Last: a sink imports vllm, which must find torch and deepspeed set up.
            self.sink = self._make_sink()
        return self.note

    def settled(self) -> None:
        """Answers when this rank has done what it was at; in each lane for itself."""

    def begin_again(self) -> str:
        """For the next attempt of a run in which another part died: as after ``setup``, but for the weights, which
        ``load`` brings. All ranks together; returns ``note``."""
        if self.sink is not None and self._make_sink is not None:
            # It holds versions that the run has not come to again.
            old, self.sink = self.sink, self._make_sink()
            try:
                old.shutdown()
            except Exception as error:  # whoever it could not take leave of is told by the new one
                logger.warning("rank %d: weights: %s", self.rank, first_line(error))
        return self.note

    def packed(self, pairs: Sequence[PreferencePair]) -> list[PackedBatch]:
        """How ``step`` would lay ``pairs`` out."""
        return self._passes.pack(pairs)

    @naming_the_switch()
    def step(self, pairs: list[PreferencePair], global_pairs: int) -> StepReport:
        """One optimizer step and one of the EMA. All ranks together. A gradient that is not finite changes no weight:
        the step counts, and is reported as skipped.

        Args:
            pairs: this rank's share of the global batch.
            global_pairs: size of the global batch, by which the loss is divided.

        Raises:
            UserError: a token is outside the vocabulary, the self-check failed, the loss alone is not finite, or the
                model has an operation without a deterministic kernel where one is asked for.
        """
        with span("step", pairs=str(len(pairs))):
            return self._step(pairs, global_pairs)

    def _step(self, pairs: list[PreferencePair], global_pairs: int) -> StepReport:
        started = time.monotonic()
        self._engine.train()
        batches = self._passes.pack(pairs)
        validate_token_ids(self._spec.model.path, batches, self._vocabulary)
        fresh = self._passes.score_under_reference(pairs, self.reference)
        references = [new or pair.reference for pair, new in zip(pairs, fresh, strict=True)]
        referred = time.monotonic()
        self._check_forward_once(pairs)
        totals = self._passes.accumulate_gradients(batches, references, global_pairs)
        metrics = totals.means(global_pairs)
        computed = time.monotonic()
        lr = self._spec.optimizer.lr * self._lr_factor(self.steps)
        grad_norm = take_optimizer_step(self._engine, self.zero_stage, lr)
        skipped = not np.isfinite(grad_norm)
        if not skipped and not np.isfinite(metrics["loss"]):
            name, loss = self._spec.objective.name, metrics["loss"]
            raise UserError(
                f"objective.name {name}: the loss of step {self.steps + 1} is {loss}, its gradient is finite"
            )
        stepped = time.monotonic()
        if not skipped:
            self.ema.update()
        moved = time.monotonic()
        self.steps += 1
        self.reference.renew_if_due(self.steps)
        times = {
            "time/reference_s": referred - started,
            "time/forward_backward_s": computed - referred,
            "time/optimizer_s": stepped - computed,
            "time/ema_s": moved - stepped,
        }
        usable = [score if score is not None and np.isfinite(score.logps).all() else None for score in fresh]
        metrics |= {"grad_norm": grad_norm, "lr": lr, SKIPPED: float(skipped)} | times
        return StepReport(metrics, usable, totals.margins(len(pairs)))

    @naming_the_switch()
    def evaluate(self, pairs: list[PreferencePair], global_pairs: int, chosen_only: bool) -> dict[str, float]:
        """Loss and metrics of the policy on pairs that are not trained on, means over ``global_pairs``. All ranks
        together.

        Args:
            pairs: this rank's share.
            chosen_only: the pairs have no rejected half: the supervised loss is taken where the objective needs one.
        """
        objective = self._objective
        if chosen_only and objective.needs_rejected:
            objective = resolve_objective(ObjectiveConfig(name="sft"))
        scores = self._passes.score_under_reference(pairs, self.reference) if objective.needs_reference else []
        return self._passes.evaluate(pairs, scores, objective, global_pairs)

    def stage(self, version: int) -> None:
        """Gather the EMA, or its adapters alone, layer by layer and hand it to the sink. All ranks together."""
        with span("publish", version=str(version)), self.shards.holding(self.ema.values):
            if self._spec.adapters_alone:
                announced, layers = adapter_metadata(self.module), adapter_layers(self.module, self.zero_stage)
            else:
                announced, layers = metadata(self.module), named_layers(self.module, self.zero_stage)
            if self.sink is not None:
                self.sink.stage(version, announced, layers)
            for _ in layers:  # a sink has left none
                pass

    def sleep(self) -> int:
        """Leave the GPU to an engine; returns the bytes that are moved to the host. Until ``wake`` the rank can do
        nothing but ``send`` and ``retarget``."""
        return self._residence.leave()

    def wake(self) -> None:
        """Come back to the GPU, bit for bit."""
        self._residence.come_back()

    def send(self) -> list[Ack]:
        """Send the newest staged weights; runs beside ``step``. Rank 0 alone."""
        assert self.sink is not None
        return self.sink.send()

    def retarget(self, actors: dict[str, ActorHandle]) -> None:
        """Send to these actors from now on. Rank 0 alone."""
        assert self.sink is not None
        self.sink.retarget(actors)

    def stacks(self) -> str:
        """What every thread of this rank is doing, for the log of a run that stands still. Runs beside ``step``."""
        return stacks()

    def score_ema(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [tokens - 1] for each sequence: log-probability in nats of every token but the first, under the EMA.
        All ranks together."""
        with self.shards.holding(self.ema.values):
            return self._passes.score_tokens(sequences)

    def save(self, folder: str, background: bool = True) -> None:
        """Begin a checkpoint in ``folder``: this rank's part of what a bit-exact continuation needs in learner/, and
        policy and EMA as Hugging Face folders. All ranks together; ``written`` waits for it.

        Args:
            background: copy it to the host, and write beside the next steps. Otherwise it is written at once, without
                a copy.
        """
        generators = {"host": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            generators["device"] = torch.cuda.get_rng_state()
        state = RankState(
            steps=self.steps,
            masters=self.shards.masters,
            optimizer=self.shards.optimizer_states(),
            ema=self.ema.values,
            reference=self.reference.values,
            reference_version=self.reference.version,
            generators=generators,
        )
        self._writer.begin(Path(folder), self._layout, state, background=background)

    def written(self) -> None:
        """Wait until this rank's part of the checkpoint is on the disk. Runs beside ``step``.

        Raises:
            UserError: it could not be written.
        """
        self._writer.wait()

    def load(self, folder: str) -> None:
        """Continue from the checkpoint in ``folder``, also of a group with other ranks or another ZeRO stage. All ranks
        together.

        Raises:
            UserError: the checkpoint is damaged, or of another format, optimizer or model.
        """
        state = checkpoint.load(Path(folder) / STATE_FOLDER, self.rank, self._layout, self.shards.masters)
        self.steps = state.steps
        self.shards.restore(state.masters)
        self.shards.restore_optimizer_states(state.optimizer)
        self.ema.restore(state.ema)
        self.reference.restore(state.reference, state.reference_version)
        torch.set_rng_state(state.generators["host"])
        if "device" in state.generators:
            torch.cuda.set_rng_state(state.generators["device"])

    def shutdown(self) -> None:
        """Leave the process group and free the sink's memory. All ranks together."""
        if self.sink is not None:
            self.sink.shutdown()
        if dist.is_initialized():
            dist.barrier()  # a rank that leaves while another still talks aborts in gloo
            dist.destroy_process_group()

    @property
    def _layout(self) -> Layout:
        return Layout(self.world_size, self.zero_stage, self._spec.optimizer.name, self.shards.pieces())

    def _check_forward_once(self, pairs: list[PreferencePair]) -> None:
        """The self-check, on pairs of the run's first step."""
        if self._checked:
            return
        # A rank may have none of a small batch; the others' check is a collective under ZeRO 3.
        check_forward(self.module, pairs or [FILLER], self._mode, self._spec.learner.logits_chunk, self._device)
        self._checked = True
