"""Each node is asked whether it sees the model and the run folder; what it does not see is named with the node."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.workers.node_paths import missing_paths, validate_nodes
from cluster.workers.resources import Hardware, connected_hardware
from contracts.errors import UserError


def config(model: Path | str, output: Path, **more: object) -> RunConfig:
    values = {"output_dir": str(output), "model": {"path": str(model)}, "data": {"path": "d"}}
    return validate_config(values | more, "test")


def test_a_ray_of_this_process_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: pytest.fail("nodes were asked"))
    validate_nodes(config("/none/such", tmp_path), Hardware("local", 1, 2.0, 0.0, local=True))


def test_a_path_is_missing_where_it_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert missing_paths({"model.path": str(tmp_path / "there"), "output_dir": str(tmp_path / "none")}) == [
        "output_dir"
    ]


@pytest.mark.slow
def test_nodes_that_see_everything_are_silent_and_others_are_named(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = connected_hardware("test", local=False)
    (tmp_path / "model").mkdir()
    seen = config(tmp_path / "model", tmp_path / "runs" / "deeper")
    validate_nodes(seen, hardware)
    validate_nodes(seen, hardware, learner=False)
    validate_nodes(config("owner/name", tmp_path), hardware)  # each node asks the hub
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"], "nothing is left behind"

    node = ray.nodes()[0]
    where = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UserError) as caught:
        validate_nodes(seen, hardware)
    assert str(caught.value) == (
        f"model.path {tmp_path / 'model'}: {where} does not see it; use a folder that all nodes share, or the name of "
        "a model on the hub"
    )
    # A node with a folder of the same name that is another one.
    elsewhere = {"output_dir": str(tmp_path / "none")}
    monkeypatch.setattr("cluster.workers.node_paths._probe", lambda _: nullcontext(elsewhere))
    with pytest.raises(UserError) as caught:
        validate_nodes(config("owner/name", tmp_path), hardware)
    said = f"output_dir {tmp_path}: {where} does not see it; use a folder that all nodes share"
    assert str(caught.value) == said
    # Only nodes that may get a rank or an actor are asked.
    pinned = {"learner_resources": {"none": 1}, "actor_resources": {"none": 1}}
    validate_nodes(config(tmp_path / "model", tmp_path, cluster=pinned), hardware)
