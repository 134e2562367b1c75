"""What the receivers do on a device of another kind than this machine's: the calls around a load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.model_loader import reload

from actors.weights import receivers
from actors.weights.acceptance import Acceptance
from actors.weights.receivers import SharedMemoryReceiver


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_update_opens_and_closes(monkeypatch, device: str):
    calls: list[Any] = []
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.setattr(reload, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: calls.append("empty_cache"))
    watch = SimpleNamespace(
        acceptance=Acceptance("Llama"), load=lambda weights: calls.append("load"), close=lambda: calls.append("close")
    )
    monkeypatch.setattr(receivers, "LoadWatch", lambda model: watch)
    receiver = SharedMemoryReceiver.__new__(SharedMemoryReceiver)
    receiver.model, receiver.device = torch.nn.Linear(2, 2), torch.device(device)
    receiver.model_config = SimpleNamespace(hf_config=SimpleNamespace(tie_word_embeddings=False))
    receiver._tried = True
    monkeypatch.setattr(SharedMemoryReceiver, "_bytes", lambda self, update: torch.zeros(0, dtype=torch.uint8))
    receiver.start_weight_update()
    receiver.receive_weights(receivers.StagedUpdate())
    receiver.finish_weight_update()
    assert calls == ["initialize_layerwise_reload", "load", "close", "finalize_layerwise_reload"] + (
        ["empty_cache"] if device == "cuda" else []
    )
