"""State that one group has saved is the same state in any other: every value of every weight finds its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.zero import checkpoint
from learner.zero.checkpoint import Layout, RankState
from learner.zero.pieces import Piece, parts_of, slice_of, whole

Weights = dict[str, Tensor]


def cut(weights: Weights, stage: int, ranks: int) -> list[tuple[Layout, list[Tensor]]]:
    """Layout and masters of each rank, cut as DeepSpeed cuts; written without the code that is tested."""
    if stage == 0:
        masters = list(weights.values())
        return [(Layout(ranks, 0, "adamw", whole(weights.items())), masters)] * ranks
    if stage == 3:
        shards = []
        sizes = {name: -(-w.numel() // ranks) for name, w in weights.items()}
        for rank in range(ranks):
            flat = []
            for name, weight in weights.items():
                padded = torch.cat([weight.reshape(-1), torch.zeros(sizes[name] * ranks - weight.numel())])
                flat.append(padded[rank * sizes[name] : (rank + 1) * sizes[name]])
            layout = [(name, w.numel(), sizes[name]) for name, w in weights.items()]
            shards.append((Layout(ranks, 3, "adamw", [parts_of(layout, rank)]), [torch.cat(flat)]))
        return shards
    flat_group = torch.cat([weight.reshape(-1) for weight in weights.values()])
    size = -(-flat_group.numel() // ranks) + 1  # with padding at the end
    flat_group = torch.cat([flat_group, torch.zeros(size * ranks - flat_group.numel())])
    offsets, offset = [], 0
    for name, weight in weights.items():
        offsets.append((name, weight.numel(), offset))
        offset += weight.numel()
    return [
        (
            Layout(ranks, 2, "adamw", [slice_of(offsets, rank * size, (rank + 1) * size)]),
            [flat_group[rank * size : (rank + 1) * size]],
        )
        for rank in range(ranks)
    ]


def state(masters: list[Tensor]) -> RankState:
    optimizer: list[dict[str, Any]] = [
        {"step": torch.tensor(5.0), "exp_avg": master * 2, "seen": 3} for master in masters
    ]
    return RankState(
        steps=5,
        masters=masters,
        optimizer=optimizer,
        ema=[master + 1 for master in masters],
        reference=[master.bfloat16() for master in masters],
        reference_version=4,
        generators={"host": torch.get_rng_state()},
    )


def held(shards: list[tuple[Layout, list[Tensor]]]) -> dict[tuple[str, int], float]:
    """Every value by weight and place; where two ranks hold it, they agree."""
    values: dict[tuple[str, int], float] = {}
    for layout, masters in shards:
        for pieces, master in zip(layout.pieces, masters, strict=True):
            flat = master.reshape(-1)
            for name, start, count, offset in pieces:
                for i in range(count):
                    value = float(flat[offset + i])
                    assert values.setdefault((name, start + i), value) == value
    return values


groups = st.tuples(st.sampled_from([0, 2, 3]), st.integers(1, 4))
shapes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), min_size=1, max_size=5)


@settings(max_examples=60)
@given(shapes=shapes, saved=groups, wanted=groups)
def test_every_value_finds_its_place(tmp_path_factory: pytest.TempPathFactory, shapes, saved, wanted):
    folder = tmp_path_factory.mktemp("saved")
    weights: Weights = {f"w{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    for rank, (layout, masters) in enumerate(cut(weights, *saved)):
        checkpoint.save(folder, rank, layout, state(masters))
    loaded = []
    for rank, (layout, masters) in enumerate(cut(weights, *wanted)):
        loaded.append((layout, checkpoint.load(folder, rank, layout, [torch.empty_like(m) for m in masters])))
    expected = {(name, i): float(v) for name, w in weights.items() for i, v in enumerate(w.reshape(-1))}
    assert held([(layout, of.masters) for layout, of in loaded]) == expected
    assert held([(layout, of.ema) for layout, of in loaded]) == {at: pytest.approx(v + 1) for at, v in expected.items()}
    references = held([(layout, of.reference) for layout, of in loaded])
    assert references == {at: float(torch.tensor(v).bfloat16()) for at, v in expected.items()}
    moments = held([(layout, [o["exp_avg"] for o in of.optimizer]) for layout, of in loaded])
    assert moments == {at: v * 2 for at, v in expected.items()}
    for _, of in loaded:
        assert all(float(o["step"]) == 5.0 and o["seen"] == 3 for o in of.optimizer)
        assert (of.steps, of.reference_version) == (5, 4)


def test_a_first_checkpoint_without_optimizer_state_is_read_too(tmp_path: Path):
    weights = {"w": torch.arange(6.0)}
    for rank, (layout, masters) in enumerate(cut(weights, 2, 2)):
        empty = RankState(0, masters, [{} for _ in masters], masters, [], 0, {"host": torch.get_rng_state()})
        checkpoint.save(tmp_path, rank, layout, empty)
    ((layout, masters),) = cut(weights, 0, 1)
    loaded = checkpoint.load(tmp_path, 0, layout, masters)
    assert loaded.optimizer == [{}]
    assert loaded.reference == []
    assert loaded.masters[0].tolist() == weights["w"].tolist()


def test_pieces_of_a_slice_begin_and_end_within_weights():
    layout = [("a", 4, 0), ("b", 2, 4), ("c", 10, 8)]  # two values of padding after b
    assert slice_of(layout, 2, 9) == [Piece("a", 2, 2, 0), Piece("b", 0, 2, 2), Piece("c", 0, 1, 6)]
    assert parts_of([("a", 5, 3), ("b", 1, 1)], rank=1) == [Piece("a", 3, 2, 0)]
