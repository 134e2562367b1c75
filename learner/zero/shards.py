"""A rank's own fp32 partition of the weights under every ZeRO stage, and how other values take its place.

The EMA and the reference are kept as tensors of the partition's shapes. To run the model with them, or to
publish them, their values are loaded into the module's parameters and the policy's are restored afterwards from
the fp32 partition: one resident model serves for all.

This file alone reaches into DeepSpeed (0.19.8): ``single_partition_of_fp32_groups``,
``parallel_partitioned_bit16_groups``, ``round_robin_bit16_groups`` and their offsets, ``real_dp_process_group`` (ZeRO
1, 2), ``fp32_partitioned_groups_flat``, ``fp16_groups``, ``parameter_offload.partition_all_parameters``, a parameter's
``ds_tensor`` and ``ds_numel`` (ZeRO 3).
tests/learner/zero/test_shards.py says what is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from learner.zero.pieces import Piece, parts_of, slice_of, whole

CHUNK = 16 << 20
"""Elements that go to a GPU at a time."""


class Shards:
    """The trainable weights that this rank owns.

    ``masters``: fp32 tensors; together the ranks' masters are the whole model (each rank has all of it under stage 0).
    """

    def __init__(self, engine: Any, zero_stage: int) -> None:
        """``engine``: an initialised DeepSpeedEngine."""
        self._engine, self.zero_stage = engine, zero_stage
        optimizer = engine.optimizer
        self.trainable = [p for p in engine.module.parameters() if p.requires_grad]
        if zero_stage == 0:
            self.masters: list[Tensor] = [p.data for p in self.trainable]
        elif zero_stage == 3:
            self.masters = optimizer.fp32_partitioned_groups_flat
        else:
            self.masters = optimizer.single_partition_of_fp32_groups

    def pieces(self) -> list[list[Piece]]:
        """Which values of which weights each master holds."""
        names = {id(p): name for name, p in self._engine.module.named_parameters()}
        optimizer = self._engine.optimizer
        if self.zero_stage == 0:
            return whole([(names[id(p)], p) for p in self.trainable])
        if self.zero_stage == 3:
            rank = torch.distributed.get_rank()
            return [
                parts_of([(names[id(p)], p.ds_numel, p.ds_tensor.numel()) for p in group], rank)
                for group in optimizer.fp16_groups
            ]
        pieces = []
        for group, master in enumerate(self.masters):
            parameters, offsets = optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_offsets[group]
            layout = [(names[id(p)], p.numel(), offset) for p, offset in zip(parameters, offsets, strict=True)]
            first = master.numel() * torch.distributed.get_rank(optimizer.real_dp_process_group[group])
            pieces.append(slice_of(layout, first, first + master.numel()))
        return pieces

    def copy(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The masters' values now, where the masters live; in pinned memory where they are."""
        copies = [master.detach().to(dtype, copy=True) for master in self.masters]
        return [c.pin_memory() if m.is_pinned() else c for c, m in zip(copies, self.masters, strict=True)]

    @contextmanager
    def holding(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Run with ``values`` (shapes of ``masters``) in the module's parameters; then the policy's again, bit for bit.

        All ranks together: ZeRO 1 and 2 gather.
        """
        self._load(values)
        try:
            yield
        finally:
            self._load(self.masters)

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        """Go on with other weights: ``values``, of the masters' shapes. All ranks together."""
        for master, value in zip(self.masters, values, strict=True):
            master.data.copy_(value)
        self._load(self.masters)

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Optimizer state of each master, as it is: copy what is to stay."""
        states = self._torch_optimizer.state
        return [dict(states.get(owner, {})) for owner in self._owners]

    @torch.no_grad()
    def restore_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Put back what ``optimizer_states`` gave."""
        # The step counter of torch's optimizers lives on the host whatever the device, but for the fused one's.
        fused = self._torch_optimizer.defaults.get("fused")
        for owner, saved in zip(self._owners, states, strict=True):
            self._torch_optimizer.state[owner] = {
                name: v.to(owner.device if v.dim() or fused else "cpu", copy=True) if isinstance(v, Tensor) else v
                for name, v in saved.items()
            }

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer if self.zero_stage == 0 else self._engine.optimizer.optimizer

    @property
    def _owners(self) -> list[Any]:
        """What the optimizer's state is keyed by."""
        return self.trainable if self.zero_stage == 0 else self.masters

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        if self.zero_stage == 0:
            # The masters are the parameters' own memory: others take their place, nothing is copied.
            for parameter, value in zip(self.trainable, values, strict=True):
                parameter.data = value.to(parameter.device, parameter.dtype)
        elif self.zero_stage == 3:
            self._load_partitioned(values)
        else:
            self._load_replicated(values)

    def _load_replicated(self, values: Sequence[Tensor]) -> None:
        """ZeRO 1 and 2: parameters are views of flat 16-bit (or fp32) buffers; write our slice, take the others'."""
        optimizer = self._engine.optimizer
        for group, value in enumerate(values):
            process_group = optimizer.real_dp_process_group[group]
            slices = optimizer.parallel_partitioned_bit16_groups[group]
            load_into(slices[torch.distributed.get_rank(process_group)], value)
            if len(slices) > 1:
                # In place: an all-gather of a list, and gloo's of a tensor too, hold the whole model once more.
                for owner, part in enumerate(slices):
                    torch.distributed.broadcast(part, group=process_group, group_src=owner)

    def _load_partitioned(self, values: Sequence[Tensor]) -> None:
        """ZeRO 3: each parameter's local part is a slice of the flat partition, in order; no communication."""
        optimizer = self._engine.optimizer
        # What a forward left gathered would go on with the old values.
        optimizer.parameter_offload.partition_all_parameters()
        for parameters, value in zip(optimizer.fp16_groups, values, strict=True):
            offset = 0
            for parameter in parameters:
                part = parameter.ds_tensor
                load_into(part.data.view(-1), value[offset : offset + part.numel()])
                offset += part.numel()


@torch.no_grad()
def load_into(target: Tensor, value: Tensor) -> None:
    """Write ``value`` into ``target``, both [elements], rounded to its dtype.

    From host memory to a GPU it goes in its own dtype, chunk by chunk, and is rounded there: left to itself, torch
    rounds on the host, into memory that is not pinned.
    """
    if target.device == value.device:
        target.copy_(value)
        return
    for first in range(0, value.numel(), CHUNK):
        part = slice(first, first + CHUNK)
        target[part].copy_(value[part].to(target.device, non_blocking=True))
    if target.is_cuda:
        # The next update on the host must not overtake what is on its way.
        torch.cuda.current_stream(target.device).synchronize()


def gathered(parameters: Sequence[nn.Parameter], zero_stage: int) -> AbstractContextManager[None]:
    """Context in which ``parameters`` are whole on every rank; all ranks enter it in the same order."""
    if zero_stage != 3:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None)
    return whole
