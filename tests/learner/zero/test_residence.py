"""What a rank keeps on its device leaves it and comes back bit for bit, shared memory still shared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learner.zero.residence import Residence, tensors_of

CPU = torch.device("cpu")


class Flat:
    """As DeepSpeed keeps weights: one buffer, of which the parameters are views."""

    __module__ = "deepspeed.like"

    def __init__(self) -> None:
        self.buffer = torch.arange(24.0)
        self.model = nn.Linear(4, 5)
        self.model.weight.data = self.buffer[:20].view(5, 4)
        self.model.bias.data = self.buffer[20:].view(-1)[:4]
        self.optimizer = torch.optim.AdamW([self.model.weight], lr=0.1)
        self.model.weight.grad = torch.ones(5, 4)
        self.optimizer.step()
        self.partition = {0: [(torch.full((3,), 7.0),)]}
        self.model.weight.ds_tensor = torch.full((2,), 9.0)  # type: ignore[attr-defined]


def test_memory_is_given_back_and_views_share_it_again_afterwards():
    owner = Flat()
    held = list(tensors_of([owner]))
    before = [tensor.clone() for tensor in held]
    residence = Residence(CPU, owner)
    moved = residence.leave()
    assert moved == sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}.values()) or moved > 0
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in held)
    assert residence.leave() == 0  # there is nothing left
    residence.come_back()
    for tensor, value in zip(held, before, strict=True):
        assert torch.equal(tensor, value)
    owner.buffer.fill_(3.0)
    assert torch.equal(owner.model.weight, torch.full((5, 4), 3.0))


def test_what_is_looked_for_is_found_wherever_it_is():
    owner = Flat()
    found = {id(tensor) for tensor in tensors_of([owner])}
    state: dict[str, Any] = owner.optimizer.state[owner.model.weight]
    grad = owner.model.weight.grad
    assert grad is not None
    wanted: list[Tensor] = [owner.buffer, owner.model.weight, owner.model.bias, grad, state["exp_avg"]]
    wanted += [owner.partition[0][0][0], owner.model.weight.ds_tensor]  # type: ignore[attr-defined]
    assert {id(tensor) for tensor in wanted} <= found


def test_other_devices_are_left_alone():
    owner = Flat()
    assert Residence(torch.device("meta"), owner).leave() == 0
    assert owner.buffer.untyped_storage().nbytes() > 0


def test_it_can_be_done_again_with_values_that_have_changed():
    owner = Flat()
    residence = Residence(CPU, owner)
    for value in (1.0, 2.0):
        owner.buffer.fill_(value)
        residence.leave()
        residence.come_back()
        assert torch.equal(owner.model.weight, torch.full((5, 4), value))
