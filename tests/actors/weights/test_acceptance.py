"""What vLLM's model does not take of a publication is found, whichever way the model reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm.model_executor.model_loader.reload.layerwise import get_numel_loaded
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from actors.weights.acceptance import Acceptance, LoadWatch, validate_accepted
from contracts.errors import UserError

Read = Callable[[Iterable[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]]


class Model(nn.Module):
    """As vLLM's models: it reads weights one by one or all at once, and leaves out some without a word."""

    def __init__(self, read: Read, skipped: str = "", tied: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.head = nn.Linear(3, 3, bias=False)
        if tied:
            self.head.weight = self.a.weight
        self._read, self._skipped = read, skipped

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        own: dict[str, Any] = dict(self.named_parameters())
        for name, tensor in self._read(weights):
            if name in own and name != self._skipped:
                getattr(own[name], "weight_loader", default_weight_loader)(own[name], tensor)
        return set(own)


def one_by_one(weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    return weights


def publish(model: Model, names: Iterable[str]) -> Acceptance:
    record_metadata_for_reloading(model)
    initialize_layerwise_reload(model)
    watch = LoadWatch(model)
    watch.load((name, torch.randn(3, 3)) for name in names)
    watch.close()
    finalize_layerwise_reload(model, None)
    return watch.acceptance


ALL = ["a.weight", "b.weight", "c.weight", "head.weight"]


@pytest.mark.parametrize("read", [one_by_one, list])
def test_a_publication_that_is_taken_whole_is_accepted(read):
    accepted = publish(Model(read), ALL)
    assert accepted == Acceptance("Model")
    validate_accepted([accepted])


@pytest.mark.parametrize("skipped", ALL)
def test_a_weight_that_is_passed_over_is_named(skipped):
    found = publish(Model(one_by_one, skipped), ALL)
    assert found.passed_over == [skipped]
    assert found.untouched == [skipped]
    with pytest.raises(UserError, match=f"vLLM's Model does not load 1 .* the first is {skipped}"):
        validate_accepted([found])


def test_one_that_is_passed_over_among_many_read_at_once_is_noticed():
    assert len(publish(Model(list, "b.weight"), ALL).passed_over) == 1


def test_a_name_that_the_model_does_not_know_is_passed_over():
    assert publish(Model(one_by_one), [*ALL, "d.weight"]).passed_over == ["d.weight"]


def test_a_weight_that_is_not_published_is_named_and_a_tied_one_need_not_be():
    found = publish(Model(one_by_one), ALL[:3])
    with pytest.raises(UserError, match=r"vLLM's Model has 1 weights that are not published, the first is head.weight"):
        validate_accepted([found])
    assert publish(Model(one_by_one, tied=True), ALL[:3]) == Acceptance("Model")


def test_what_one_worker_passes_over_another_may_take():
    validate_accepted([Acceptance("Model", passed_over=["a", "b"]), Acceptance("Model", passed_over=["c"])])
    with pytest.raises(UserError, match="the first is b"):
        validate_accepted([Acceptance("Model", passed_over=["a", "b"]), Acceptance("Model", passed_over=["b"])])


def test_what_the_model_raises_is_kept_in_one_line_and_vllm_is_left_as_it_was():
    class Strict(Model):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            raise KeyError("layers.0.mlp.w1\nmore")

    watch = LoadWatch(Strict(one_by_one))
    with pytest.raises(KeyError):
        watch.load([])
    with pytest.raises(UserError, match=r"can't load what the learner publishes: KeyError: .*w1") as refused:
        validate_accepted([watch.acceptance])
    assert "\n" not in str(refused.value)
    from vllm.model_executor.model_loader.reload import layerwise

    assert layerwise.get_numel_loaded is get_numel_loaded


def test_adapters_that_are_not_applied_are_named_with_the_remedy():
    validate_accepted([Acceptance("Model", adapters=True)])
    for fault, words in (
        (
            {"passed_over": ["model.layers.0.mlp.gate", "x"]},
            "no adapters to 2 of the layers .* model.layers.0.mlp.gate",
        ),
        ({"refusal": "ValueError: no"}, "can't apply the adapters: ValueError: no"),
    ):
        with pytest.raises(UserError, match=f"Model .*{words}.*; set weights.lora=merged"):
            validate_accepted([Acceptance("Model", adapters=True), Acceptance("Model", adapters=True, **fault)])
