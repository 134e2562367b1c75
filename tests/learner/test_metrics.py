"""What a step says of single pairs."""

from __future__ import annotations

import torch

from learner.metrics import Totals


def test_margins_come_back_in_the_order_of_the_rank_s_pairs() -> None:
    totals = Totals(torch.device("cpu"))
    loss = torch.zeros(())
    totals.add(loss, {"rewards/margins": torch.tensor([2.0, 0.5])}, 10, (2, 0))
    totals.add(loss, {"rewards/margins": torch.tensor([1.0])}, 10, (1,))
    totals.add(loss, {"rewards/margins": torch.tensor([9.0])}, 0)  # a filler
    totals.add(loss, {"rewards/margins": torch.tensor([float("nan")])}, 10, (3,))
    assert totals.margins(5) == [0.5, 1.0, 2.0, None, None]


def test_an_objective_without_margins_has_none() -> None:
    totals = Totals(torch.device("cpu"))
    totals.add(torch.zeros(()), {"nll_loss": torch.tensor([2.0])}, 10, (0,))
    assert totals.margins(1) == [None]
