"""Ranks and actors are counted against the nodes before anything starts; brute force says what fits."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from cluster.workers import resources
from cluster.workers.resources import Hardware, actor_bundle, demands, rank_share, require_room
from cluster.workers.room import Demand, Node, fits, shortage
from contracts.errors import UserError
from support.paths import REPOSITORY

NODE: Node = {"GPU": 8.0, "CPU": 96.0, "memory": 1e12, "accelerator_type:H100": 1.0}
LOG = logging.getLogger("test")


def demand(kind: str, count: int, gpus: float, cpus: float = 1.0, strategy: str = "PACK") -> Demand:
    key = {"ranks": "learner.ranks", "actors": "generation.actors"}[kind]
    return Demand(kind, key, count, {"CPU": cpus, "GPU": gpus}, strategy)


def config(**changes: Any) -> RunConfig:
    """By section."""
    smallest = {"model": {"path": "m"}, "data": {"path": "d"}}
    return RunConfig.model_validate(smallest | {"learner": {"ranks": 8, "batch_size": 64}} | changes)


def on(*nodes: Node) -> Hardware:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return Hardware("here", len(nodes), cpus, gpus, False, nodes)


def brute_force(nodes: list[Node], ranks: Demand, actors: Demand) -> bool:
    """Tries every way to put ranks and actors on nodes."""
    for places in product(range(len(nodes)), repeat=ranks.count + actors.count):
        left = [dict(node) for node in nodes]
        for number, place in enumerate(places):
            bundle = (ranks if number < ranks.count else actors).bundle
            for name, amount in bundle.items():
                left[place][name] -= amount
        used = places[: ranks.count]
        allowed = {
            "STRICT_PACK": len(set(used)) <= 1,
            "STRICT_SPREAD": len(set(used)) == len(used),
        }.get(ranks.strategy, True)
        if allowed and all(amount >= 0 for node in left for amount in node.values()):
            return True
    return False


@given(
    gpus=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    cores=st.integers(1, 6),
    ranks=st.integers(0, 3),
    actors=st.integers(0, 3),
    parallel=st.integers(1, 3),
    strategy=st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_what_fits_is_what_some_placement_holds(gpus, cores, ranks, actors, parallel, strategy):
    nodes: list[Node] = [{"GPU": float(n), "CPU": float(cores)} for n in gpus]
    wanted = demand("ranks", ranks, 1.0, strategy=strategy), demand("actors", actors, float(parallel))
    assert fits(nodes, *wanted) is brute_force(nodes, *wanted)
    assert (shortage(nodes, *wanted) is None) is brute_force(nodes, *wanted)


def test_the_line_adds_up_ranks_and_actors_and_names_what_there_is():
    assert shortage([NODE], demand("ranks", 8, 1.0), demand("actors", 2, 1.0)) == (
        "the run needs 8 GPUs for ranks + 2 for actors = 10; the cluster has 1 node with 8 GPUs, 96 CPUs"
    )


def test_gpus_of_one_engine_must_be_on_one_node():
    nodes: list[Node] = [{"GPU": 2.0, "CPU": 8.0}] * 4
    assert fits(nodes, demand("ranks", 4, 1.0), demand("actors", 2, 2.0))
    assert shortage(nodes, demand("ranks", 4, 1.0), demand("actors", 1, 4.0)) == (
        "generation.actors 1 needs 1 CPU, 4 GPUs for each; no node has that: the cluster has 4 nodes with 2 GPUs, "
        "8 CPUs"
    )


def test_a_strict_strategy_is_named():
    line = shortage([NODE], demand("ranks", 2, 1.0, strategy="STRICT_SPREAD"), demand("actors", 0, 1.0))
    assert line == (
        "learner.ranks 2 needs 1 CPU, 1 GPU for each under cluster.strategy STRICT_SPREAD; the cluster has 1 node with "
        "8 GPUs, 96 CPUs"
    )


def test_a_run_that_does_not_fit_is_told_what_would():
    with pytest.raises(UserError) as raised:
        require_room(config(generation={"actors": 2}), on(NODE), LOG)
    assert str(raised.value) == (
        "cluster: the run needs 8 GPUs for ranks + 2 for actors = 10; the cluster has 1 node with 8 GPUs, 96 CPUs; "
        "e.g. learner.ranks=4 generation.actors=4"
    )


def test_a_run_that_fits_and_generation_alone_pass():
    require_room(config(generation={"actors": 8}), on(NODE, NODE), LOG)
    require_room(config(generation={"actors": 8}), on(NODE), LOG, learner=False)
    require_room(config(generation={"actors": 0}), on(NODE), LOG)


def test_without_gpus_a_run_waits_for_nodes_as_before(caplog):
    with caplog.at_level(logging.INFO):
        require_room(config(), on({"CPU": 2.0}), LOG)
    assert caplog.messages == ["reserves 9 CPUs of 2; waits for nodes to join"]


def test_an_autoscaler_that_can_add_enough_is_waited_for(monkeypatch, caplog):
    offered = {"GPU": 16, "CPU": 192}
    monkeypatch.setattr(resources.state, "get_max_resources_from_cluster_config", lambda: offered)
    with caplog.at_level(logging.INFO):
        require_room(config(generation={"actors": 2}), on(NODE), LOG)
    assert caplog.messages[0].endswith("waits for Ray's autoscaler")
    offered["GPU"] = 9
    with pytest.raises(UserError, match="= 10; the cluster has 1 node"):
        require_room(config(generation={"actors": 2}), on(NODE), LOG)


@pytest.fixture(autouse=True)
def no_autoscaler(monkeypatch):
    monkeypatch.setattr(resources.state, "get_max_resources_from_cluster_config", lambda: None)


@pytest.mark.contract
def test_ray_says_what_an_autoscaler_can_add():
    from ray._private.state import GlobalState

    assert callable(GlobalState.get_max_resources_from_cluster_config)


def test_ranks_and_actors_are_pinned_to_kinds_of_nodes():
    pinned = config(
        learner={"ranks": 2, "batch_size": 64},
        cluster={"learner_resources": {"accelerator_type:H100": 0.001}, "actor_resources": {"inference": 1}},
    )
    ranks, actors = demands(pinned, use_gpu=True)
    assert ranks.bundle == {"CPU": 1.0, "accelerator_type:H100": 0.001, "GPU": 1.0}
    assert actors.bundle == {"CPU": 1.0, "inference": 1.0, "GPU": 1.0}
    require_room(pinned, on(NODE, {"GPU": 1.0, "CPU": 4.0, "inference": 1.0}), LOG)
    with pytest.raises(UserError) as raised:
        require_room(pinned, on(NODE), LOG)
    assert str(raised.value) == (
        "cluster: generation.actors 1 needs 1 CPU, inference 1, 1 GPU for each; no node has that: the cluster has 1 "
        "node with 8 GPUs, 96 CPUs, inference 0"
    )


def test_a_rank_and_the_engine_on_its_gpu_have_one_whole_gpu():
    shared = config(cluster={"colocate": True}, generation={"actors": 8})
    ranks, actors = demands(shared, use_gpu=True)
    assert (ranks.count, actors.count) == (8, 0)
    assert ranks.bundle == {"CPU": 2.0, "GPU": 1.0}
    assert {rank_share(shared, use_gpu=True)["GPU"], actor_bundle(shared, use_gpu=True)["GPU"]} == {0.5}
    require_room(shared, on(NODE), LOG)
    with pytest.raises(UserError, match=r"e\.g\. learner\.ranks=4 generation\.actors=4"):
        require_room(shared, on({"GPU": 4.0, "CPU": 96.0}), LOG)


def stated(path: Path) -> float:
    """What a recipe's comment says: ``# GPUs: 8 (4 learner ranks + 4 actors x 1)``."""
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# GPUs: ")]
    return float(line.split()[2])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_gpus_that_it_states(path: Path):
    recipe, gpus = load_config(path), stated(path)
    if path.stem.startswith("demo"):
        assert gpus == 0
        return
    ranks, actors = demands(recipe, use_gpu=True)
    assert ranks.count * ranks.bundle["GPU"] + actors.count * actors.bundle["GPU"] == gpus
    nodes: list[Node] = [{"GPU": min(gpus, 8.0), "CPU": 64.0}] * max(1, int(gpus) // 8)
    require_room(recipe, on(*nodes), LOG)
    parts = [f"{ranks.count} learner rank{'s' * (ranks.count > 1)}"]
    if actors.count:
        parts.append(f"{actors.count} actors x {recipe.generation.tensor_parallel}")
    said = "1 learner rank and 1 actor share it" if recipe.cluster.colocate else " + ".join(parts)
    assert f"# GPUs: {gpus:g} ({said})\n" in path.read_text()


def test_there_are_recipes_for_one_four_eight_and_sixteen_gpus():
    assert {stated(path) for path in (REPOSITORY / "configs").glob("*.yaml")} >= {1, 4, 8, 16}
