"""A resumed group goes on bit for bit; files that can't be gone on from are rejected in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.errors import UserError
from learner.config import LoraConfig
from learner.zero import checkpoint
from learner.zero.checkpoint import FORMAT, Layout, RankState
from learner.zero.pieces import Piece
from support.rank_group import close, in_group, save, sections, start, steps, weights


def run(rank: int, world: int, port: int, parts: dict[str, Any], out: str, interrupted: bool) -> None:
    learner = start(rank, world, port, parts)
    if interrupted:
        learner.load(f"{out}/saved")
        assert learner.steps == 3
    else:
        steps(learner, 0, 3)
        learner.save(f"{out}/saved")  # what the next steps do must not be in it
    name = "resumed" if interrupted else "straight"
    history = steps(learner, 3, 6)
    learner.written()
    save(learner, f"{out}/{name}")
    if rank == 0:
        kept = [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in history]
        torch.save(kept, f"{out}/{name}/history.pt")
    learner.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"learner": {"zero_stage": 0}}, "ema"),
        ({"learner": {"zero_stage": 2, "offload_optimizer": True}, "model": {"dtype": "bfloat16"}}, "policy"),
        # Dropout makes the generators part of the result.
        ({"learner": {"zero_stage": 3}, "model": {"lora": LoraConfig(rank=4, dropout=0.2)}}, "initial"),
    ],
    ids=["zero0", "zero2-bf16-offload", "zero3-lora"],
)
def test_resume_gives_the_same_weights_and_metrics_bit_for_bit(changes, mode, tiny_llama, tmp_path):
    parts = sections(
        tiny_llama,
        reference={"mode": mode, "interval": 2},
        optimizer={"schedule": "cosine", "warmup_steps": 2},
        **changes,
    )
    in_group(2, run, parts, str(tmp_path), False)
    in_group(2, run, parts, str(tmp_path), True)
    for which in ("policy", "ema"):
        close(*(weights(tmp_path / name / which) for name in ("straight", "resumed")), 0.0)
    straight, resumed = (torch.load(tmp_path / name / "history.pt") for name in ("straight", "resumed"))
    assert straight == resumed


def go_on(rank: int, world: int, port: int, parts: dict[str, Any], out: str, name: str) -> None:
    learner = start(rank, world, port, parts)
    learner.load(f"{out}/saved")
    save(learner, f"{out}/{name}-loaded")
    history = steps(learner, 3, 6)
    save(learner, f"{out}/{name}")
    if rank == 0:
        torch.save([metrics["loss"] for metrics in history], f"{out}/{name}/losses.pt")
    learner.shutdown()


@pytest.mark.slow
def test_other_ranks_and_other_stages_go_on_with_the_same_state(tiny_llama, tmp_path):
    """Saved by two ranks under ZeRO 2; what is loaded is equal bit for bit, what follows within fp32 rounding."""

    def group(ranks: int, stage: int) -> dict[str, Any]:
        learner = {"ranks": ranks, "zero_stage": stage}
        return sections(tiny_llama, reference={"mode": "ema", "interval": 2}, learner=learner)

    in_group(2, run, group(2, 2), str(tmp_path), False)
    in_group(2, go_on, group(2, 2), str(tmp_path), "same")
    for ranks, stage in ((1, 0), (3, 3)):
        in_group(ranks, go_on, group(ranks, stage), str(tmp_path), "other")
        for which in ("policy", "ema"):
            close(*(weights(tmp_path / f"{name}-loaded" / which) for name in ("same", "other")), 0.0)
            close(*(weights(tmp_path / name / which) for name in ("same", "other")), 1e-4)
        same, other = (torch.load(tmp_path / name / "losses.pt") for name in ("same", "other"))
        assert other == pytest.approx(same, abs=1e-5)


def layout(ranks: int = 2, zero_stage: int = 2, optimizer: str = "adamw") -> Layout:
    pieces = [[Piece(f"w{i}", 0, 4 if i == 3 else i + 1, 0)] for i in range(12)]
    return Layout(ranks, zero_stage, optimizer, pieces)


def odd_state() -> RankState:
    """More masters than one digit counts, values that printed numbers would lose, no state for one master."""
    masters = [torch.full((i + 1,), 0.1) / (i + 1) for i in range(12)]
    masters[3] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45])
    optimizer: list[dict[str, Any]] = [
        {
            "step": torch.tensor(7.0),
            "exp_avg": master / 3,
            "beta_product": 1 / 3,
            "capturable": False,
            "seen": 2**53 + 1,
        }
        for master in masters
    ]
    optimizer[5] = {}
    return RankState(
        steps=7,
        masters=masters,
        optimizer=optimizer,
        ema=[master.flip(0) for master in masters],
        reference=[master.bfloat16() for master in masters],
        reference_version=4,
        generators={"host": torch.get_rng_state()},
    )


def bits(value: Any) -> Any:
    """What is compared: type, dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {name: bits(of_name) for name, of_name in value.items()}
    return [bits(part) for part in value] if isinstance(value, list) else (type(value), value)


def test_files_keep_every_bit(tmp_path):
    state = odd_state()
    checkpoint.save(tmp_path, 0, layout(), state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.json", "rank-0.safetensors"]
    loaded = checkpoint.load(tmp_path, 0, layout(), state.masters)
    assert bits(vars(loaded)) == bits(vars(state))


def test_what_has_no_tensors_comes_back_empty(tmp_path):
    state = replace(odd_state(), reference=[], generators={"host": torch.get_rng_state(), "device": torch.zeros(3)})
    checkpoint.save(tmp_path, 0, layout(), state)
    loaded = checkpoint.load(tmp_path, 0, layout(), state.masters)
    assert loaded.reference == []
    assert loaded.generators.keys() == {"host", "device"}


def test_files_name_format_and_program(tmp_path):
    checkpoint.save(tmp_path, 0, layout(), odd_state())
    manifest = json.loads((tmp_path / "rank-0.json").read_text())
    assert manifest["format"] == FORMAT
    assert manifest["program"]


def rejection(folder: Path, now: Layout) -> str:
    with pytest.raises(UserError) as rejected:
        checkpoint.load(folder, 0, now, odd_state().masters)
    message = str(rejected.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_another_optimizers_state_is_rejected(tmp_path):
    checkpoint.save(tmp_path, 0, layout(), odd_state())
    expected = "saved with optimizer.name adamw; this run has optimizer.name rmsprop"
    assert expected in rejection(tmp_path, layout(optimizer="rmsprop"))


def test_another_models_weights_are_rejected_by_name(tmp_path):
    checkpoint.save(tmp_path, 0, layout(ranks=1), odd_state())
    other = layout(ranks=1)
    other.pieces[7] = [Piece("w7", 0, 9, 0)]
    assert "1 of 9 values of w7 are not in it: it is a checkpoint of another model" in rejection(tmp_path, other)


def test_a_checkpoint_without_a_format_number_is_rejected(tmp_path):
    torch.save({"layout": layout()}, tmp_path / "rank-0.pt")
    message = rejection(tmp_path, layout())
    assert "rank-0.pt: has no format number, so another version wrote it" in message
    assert message.endswith(f"reads format {FORMAT} alone")


def test_a_checkpoint_of_a_newer_format_is_rejected(tmp_path):
    (tmp_path / "rank-0.json").write_text(json.dumps({"format": FORMAT + 1, "program": "9.0", "other": 1}))
    message = rejection(tmp_path, layout())
    assert f"rank-0.json: has format {FORMAT + 1}, so another version wrote it;" in message
    assert message.endswith(f"reads format {FORMAT} alone")


def test_a_missing_tensor_is_named(tmp_path):
    checkpoint.save(tmp_path, 0, layout(), odd_state())
    path = tmp_path / "rank-0.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name != "optimizer.2.exp_avg"}
    save_file(tensors, path)
    assert "lacks 1 of 59 tensors, the first is optimizer.2.exp_avg" in rejection(tmp_path, layout())


@pytest.mark.parametrize("name", ["rank-0.safetensors", "rank-0.json"])
def test_a_cut_file_is_rejected(name, tmp_path):
    checkpoint.save(tmp_path, 0, layout(), odd_state())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert f"{name}: damaged" in rejection(tmp_path, layout())


def test_a_missing_rank_file_is_named(tmp_path):
    assert "rank-0.json: missing; the checkpoint is not whole" in rejection(tmp_path, layout())
