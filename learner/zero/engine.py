"""The DeepSpeed engine: process group, the module whose call is the forward, initialization, optimizer step."""

from __future__ import annotations

import logging
import math
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from contracts.errors import UserError, first_line
from learner.config import LearnerConfig, ModelConfig, OptimizerConfig
from learner.model.adapters import embedding_adapters
from learner.model.forward import score, token_scores
from learner.model.packing import PackedBatch
from learner.zero.determinism import use_deterministic_kernels
from learner.zero.optim import deepspeed_config, effective_zero_stage, make_optimizer

SHARED_MEMORY_COLLECTIVE = "deepspeed_shm_comm"
"""DeepSpeed's name of the operator."""


class Scorer(nn.Module):
    """The module inside the DeepSpeed engine: a packed batch in, log-probabilities out.

    DeepSpeed's hooks (gathering, micro-step counting, ZeRO 3's trace) hang on the call of the engine's module; calling
    the model around them would silently drop the gradients of all but the last micro-batch under ZeRO 3.
    """

    def __init__(self, model: nn.Module, chunk: int, prefix_grad: bool, offload: bool) -> None:
        super().__init__()
        self.model = model
        self._chunk, self._prefix_grad, self._offload = chunk, prefix_grad, offload

    def forward(self, batch: PackedBatch, by_token: bool = False) -> Tensor:
        """float32 [pairs, 5], sums over regions; with ``by_token`` [scored] in the batch's order. Nats."""
        if by_token:
            return token_scores(self.model, batch, self._chunk)
        with activations_on_host() if self._offload and torch.is_grad_enabled() else nullcontext():
            return score(self.model, batch, self._chunk, prefix_grad=self._prefix_grad)


def activations_on_host() -> AbstractContextManager[None]:
    """What the forward saves for the backward pass waits in host memory; weights, which stay anyway, are left."""

    def pack(tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        kept = torch.empty(tensor.size(), dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, kept.copy_(tensor, non_blocking=tensor.is_cuda)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def join_group(
    rank: int, world_size: int, master_address: str, master_port: int, learner: LearnerConfig, deterministic: bool
) -> torch.device:
    """Form the process group, NCCL on GPUs and gloo elsewhere; the device of this rank. All ranks together.

    Args:
        deterministic: on GPU, every kernel gives the same numbers each time.
    """
    gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
    }
    if gpu:
        if deterministic:
            use_deterministic_kernels()
        torch.cuda.set_device(0)  # Ray shows each rank its own GPU alone
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        torch.set_num_threads(learner.threads_per_rank)
    import deepspeed

    # Compiled at first use for one or two minutes, and again after many a change around it. Only inference calls it.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_COLLECTIVE] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch has renamed: a warning for each of them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        rank=rank,
        world_size=world_size,
        init_method=f"tcp://{master_address}:{master_port}",
        timeout=timedelta(seconds=learner.collective_timeout_s),
    )
    return torch.device("cuda", 0) if gpu else torch.device("cpu")


def bound_collectives(timeout_s: float) -> None:
    """No collective of this process waits longer for another rank.

    The groups that DeepSpeed makes for itself do not inherit the first one's limit; torch gives them its default of 10
    minutes on NCCL, which a rank that writes a large model exceeds.
    """
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def initialize(
    scorer: Scorer, device: torch.device, model: ModelConfig, learner: LearnerConfig, optimizer: OptimizerConfig
) -> Any:
    """The DeepSpeed engine over ``scorer``. All ranks together.

    Raises:
        UserError: DeepSpeed does not know a key of ``learner.deepspeed``, or not with this value.
    """
    import deepspeed

    config = deepspeed_config(model, learner, optimizer)
    try:
        deepspeed.DeepSpeedConfig(config)
    except (ValidationError, ValueError, AssertionError) as error:
        if learner.deepspeed:
            raise UserError(f"learner.deepspeed: DeepSpeed rejects it: {_reason(error)}") from error
        raise
    if effective_zero_stage(model, learner) == 3:
        # Cut up on the host, weight by weight: the whole model need not fit the device.
        deepspeed.zero.Init(module=scorer, config_dict_or_path=config)
        for buffer in scorer.buffers():
            buffer.data = buffer.data.to(device)
        # peft computes with an embedding's adapters around their own modules, which ZeRO gathers them by.
        for layer, adapter in embedding_adapters(scorer):
            deepspeed.zero.register_external_parameter(layer, adapter)
    else:
        scorer.to(device)
    trainable = [p for p in scorer.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=make_optimizer(optimizer, trainable), config=config)
    bound_collectives(learner.collective_timeout_s)
    return engine


def _reason(error: Exception) -> str:
    """What pydantic, or DeepSpeed itself, has against a configuration, in one line."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"


def take_optimizer_step(engine: Any, zero_stage: int, lr: float) -> float:
    """One step at learning rate ``lr`` with the accumulated gradients; none where they are not finite. All ranks
    together.

    Returns:
        The global gradient norm before clipping; not finite where no step was taken.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    if zero_stage == 0:  # DeepSpeed does not keep the norm there, and the step clears the gradients
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(norm):
            engine.step()
        else:
            engine.optimizer.zero_grad()
        return norm
    engine.step()
    return math.inf if engine.optimizer.overflow else float(engine.get_global_grad_norm())
