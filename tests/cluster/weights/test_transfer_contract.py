"""What we rely on in vLLM's weight transfer and engine, so that a release that changes it fails here and says where.

Nothing is computed by an engine; the NCCL backend's own two ends run over a communicator in memory.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import base, ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
from vllm.outputs import CompletionOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine_options import receiver_of
from actors.inprocess import InProcessEngine
from actors.weights import digesting
from actors.weights.digesting import DigestingIpc, DigestingNccl
from actors.weights.receivers import GlooReceiver, SharedMemoryReceiver
from actors.weights.wire import Bucket, Entry, StagedUpdate
from cluster.weights.client import ActorsClient
from cluster.weights.senders import GlooSender, NcclSender, SharedMemorySender
from cluster.weights.staging import StagedVersions
from support.nccl import FakeNccl, Group, one_stream

pytestmark = pytest.mark.contract


def names_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def fields_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("backend", "sender"), [("shm",) * 2, ("gloo",) * 2, ("nccl", "abortable-nccl"), ("ipc",) * 2])
def test_both_ends_of_every_backend_are_registered(backend, sender):
    assert sender in WeightTransferTrainerFactory._registry
    assert receiver_of(backend) in WeightTransferEngineFactory._registry
    assert issubclass(WeightTransferEngineFactory._registry[receiver_of(backend)](), base.WeightTransferEngine)


@pytest.mark.parametrize("ours", [SharedMemoryReceiver, GlooReceiver, DigestingNccl, DigestingIpc])
def test_receivers_define_all_that_vllm_calls(ours):
    assert not inspect.isabstract(ours)
    assert issubclass(ours, base.WeightTransferEngine)
    assert names_of(base.WeightTransferEngine.__init__) == {"self", "config", "vllm_config", "device", "model"}


@pytest.mark.parametrize("ours", [SharedMemorySender, GlooSender, NcclSender])
def test_senders_define_all_that_vllm_calls(ours):
    assert not inspect.isabstract(ours)
    assert {"client", "source", "is_sender"} <= names_of(base.TrainerWeightTransferEngine.__init__)
    assert names_of(ours.trainer_init) == names_of(base.TrainerWeightTransferEngine.trainer_init)


def test_the_client_is_vllms_protocol():
    calls = {name for name in vars(base.VLLMWeightSyncClient) if not name.startswith("_")}
    assert calls == {
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    }
    assert isinstance(ActorsClient({}, 1, 1.0, StagedVersions(shared=False)), base.VLLMWeightSyncClient)


def test_staged_versions_are_vllms_source():
    assert base.WeightSource.__abstractmethods__ == {"metadata", "__iter__"}
    assert not inspect.isabstract(StagedVersions)


@pytest.mark.parametrize("ours", [SharedMemoryReceiver, GlooReceiver])
def test_vllm_has_the_receiver_parse_what_a_sender_requested(ours):
    """Plain data on the way, records behind it."""
    update = StagedUpdate([Entry("w", "float32", (2, 3), 64)], [Bucket(0, 128, 2**64 - 1)], "/some/path")
    received: list[StagedUpdate] = []

    vllm_config: Any = SimpleNamespace(parallel_config=None, model_config=None)
    receiver = ours(None, vllm_config, torch.device("cpu"), None)
    with mock.patch.object(receiver, "receive_weights", received.append):
        receiver.update_weights(update.request())
    assert received == [update]
    request = base.WeightTransferUpdateRequest(update_info=update.request())
    assert request.update_info == dataclasses.asdict(update)
    assert names_of(base.WeightTransferEngine.parse_update_info) == {"self", "update_dict"}


def test_gpu_senders_take_what_we_give_them():
    nccl, ipc = fields_of(nccl_engine.NCCLTrainerInitInfo), fields_of(ipc_engine.IPCTrainerInitInfo)
    assert {"master_address", "master_port", "world_size", "rank", "packed"} <= nccl
    assert {"packed", "packed_buffer_size_bytes", "rank"} <= ipc


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("generate", {"prompt", "sampling_params", "request_id"}),
        ("pause_generation", {"mode", "clear_cache"}),
        ("resume_generation", set()),
        ("init_weight_transfer_engine", {"request"}),
        ("start_weight_update", set()),
        ("update_weights", {"request"}),
        ("finish_weight_update", {"weight_version"}),
        ("sleep", {"level"}),
        ("wake_up", {"tags"}),
    ],
)
def test_the_engine_in_process_has_the_names_of_vllms_asynchronous_one(method, parameters):
    for engine in (AsyncLLM, InProcessEngine):
        assert parameters <= names_of(getattr(engine, method))
        needed = {
            name
            for name, p in inspect.signature(getattr(engine, method)).parameters.items()
            if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        assert needed <= parameters | {"self"}


def test_the_engine_keeps_what_the_one_in_process_reaches_into():
    assert {"pause_scheduler", "resume_scheduler", "shutdown"} <= set(dir(EngineCore))
    assert {"add_request", "step", "collective_rpc", "set_weight_version", "sleep", "wake_up"} <= set(dir(LLMEngine))
    assert {"mode", "clear_cache"} <= names_of(EngineCore.pause_scheduler)


def test_what_is_given_up_of_vllms_communicator_is_there_and_does_nothing_afterwards():
    assert "if self.disabled:" in inspect.getsource(PyNcclCommunicator.broadcast)
    assert "self.nccl.ncclCommAbort(self.comm)" in inspect.getsource(PyNcclCommunicator.destroy)
    assert {"set", "check"} <= set(dir(torch.distributed.Store))
    assert "store" in fields_of(StatelessProcessGroup)


def test_vllms_nccl_receiver_keeps_what_ours_sets_in_its_place():
    source = inspect.getsource(nccl_engine.NCCLWeightTransferEngine.init_transfer_engine)
    set_there = set(re.findall(r"self\.(\w+) =", source))
    assert set_there == {"packed", "packed_buffer_size_bytes", "packed_num_buffers", "model_update_group"}
    assert {"load_numel", "loaded_weights"} <= fields_of(LayerReloadingInfo)


def test_an_engine_that_sleeps_wakes_up_part_by_part():
    source = inspect.getsource(EngineCore.wake_up)
    assert "fully_awake" in source and "resume_scheduler" in source  # not before its cache is there
    assert {"level", "mode"} <= names_of(EngineCore.sleep)


def test_outputs_say_which_weights_generated_which_tokens():
    assert {"token_ids", "logprobs", "weight_versions"} <= fields_of(CompletionOutput)
    assert {"skip_tokenizer_init", "weight_transfer_config", "worker_extension_cls"} <= fields_of(EngineArgs)


class Worker:
    """vLLM's NCCL receiver behind the four calls, without Ray and engine."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.calls: list[str] = []
        model = SimpleNamespace(
            load_weights=lambda weights: self.loaded.update((n, w.clone()) for n, w in weights), modules=list
        )
        vllm_config: Any = SimpleNamespace(parallel_config=None, model_config=None)
        self.engine = DigestingNccl(None, vllm_config, torch.device("cpu"), model)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        self.rank_offset = init_info["rank_offset"]
        self.engine.init_transfer_engine(self.engine.parse_init_info(init_info))

    def start_weight_update(self) -> None:
        self.calls.append("start")
        with mock.patch.object(nccl_engine.NCCLWeightTransferEngine, "start_weight_update"):  # there are no layers
            self.engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update")
        self.engine.receive_weights(self.engine.parse_update_info(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")


def test_vllms_nccl_ends_carry_a_staged_version():
    """One broadcast a tensor: the packed form needs CUDA streams."""
    weights = {"a": torch.randn(3, 5), "b.c": torch.randn(7).bfloat16(), "d": torch.randn(2, 2, 2)}
    staged = StagedVersions(shared=False)
    staged.stage(4, [(name, w.dtype, tuple(w.shape)) for name, w in weights.items()], [list(weights.items())])
    library, group, worker = FakeNccl(), Group(2), Worker()
    with (
        mock.patch.object(nccl_engine, "open_trainer_endpoint", lambda info: group.join(library, 0)),
        mock.patch.object(digesting, "worker_init_process_group", lambda info, parallel: group.join(library, 1)),
        one_stream(),
    ):
        init = nccl_engine.NCCLTrainerInitInfo(
            rank=0, master_address="127.0.0.1", master_port=1, world_size=2, packed=False
        )
        sender = WeightTransferTrainerFactory.trainer_init(init, client=worker, source=staged)
        for _ in range(2):
            with staged.sending():
                sender.send_weights()
    assert worker.calls == ["init", *["start", "update", "finish"] * 2]
    assert worker.rank_offset == 1
    assert worker.loaded.keys() == weights.keys()
    for name, weight in weights.items():
        assert worker.loaded[name].dtype == weight.dtype
        assert torch.equal(worker.loaded[name], weight)
