"""The DeepSpeed engine: process group, the module whose call is the forward, initialization, optimizer step."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig, ModelConfig, OptimizerConfig
from learner.model.forward import score, token_scores
from learner.model.packing import PackedBatch
from learner.zero.optim import deepspeed_config, effective_zero_stage, make_optimizer


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


def join_group(rank: int, world_size: int, master_address: str, master_port: int, threads: int) -> torch.device:
    """Form the process group, NCCL on GPUs and gloo elsewhere; the device of this rank. All ranks together."""
    gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
    }
    if gpu:
        torch.cuda.set_device(0)  # Ray shows each rank its own GPU alone
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        torch.set_num_threads(threads)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch has renamed: a warning for each of them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    with redirect_stdout(StringIO()):  # it prints that it has built its shared-memory collective
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            rank=rank,
            world_size=world_size,
            init_method=f"tcp://{master_address}:{master_port}",
        )
    return torch.device("cuda", 0) if gpu else torch.device("cpu")


def initialize(
    scorer: Scorer, device: torch.device, model: ModelConfig, learner: LearnerConfig, optimizer: OptimizerConfig
) -> Any:
    """The DeepSpeed engine over ``scorer``. All ranks together."""
    import deepspeed

    config = deepspeed_config(model, learner, optimizer)
    if effective_zero_stage(model, learner) == 3:
        # Cut up on the host, weight by weight: the whole model need not fit the device.
        deepspeed.zero.Init(module=scorer, config_dict_or_path=config)
        for buffer in scorer.buffers():
            buffer.data = buffer.data.to(device)
    else:
        scorer.to(device)
    trainable = [p for p in scorer.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=make_optimizer(optimizer, trainable), config=config)
    return engine


def take_optimizer_step(engine: Any, zero_stage: int, lr: float) -> float:
    """One step at learning rate ``lr`` with the accumulated gradients. All ranks together.

    Returns:
        The global gradient norm before clipping.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    if zero_stage == 0:  # DeepSpeed does not keep the norm there, and the step clears the gradients
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        engine.step()
        return norm
    engine.step()
    return float(engine.get_global_grad_norm())
