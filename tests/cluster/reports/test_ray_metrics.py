"""What reaches Ray's metrics port: values, and totals as counters that only grow."""

from __future__ import annotations

import logging

import pytest

from cluster.reports import ray_metrics
from cluster.reports.ray_metrics import EventCounts, RayMetrics


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What the port shows, by name and part."""
    shown: dict[tuple[str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name = name
            assert tag_keys == ("run", "part")

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags["run"] == "mine"
            shown[self._name, tags["part"]] = value

    monkeypatch.setattr(ray_metrics, "Gauge", Gauge)
    return shown


def test_what_has_not_happened_yet_is_zero(port):
    RayMetrics("mine")
    assert port["sapo_events_attempt_failed", "run"] == port["sapo_learner_skipped", "learner"] == 0.0


def test_values_totals_and_what_is_added_each_step(port):
    metrics = RayMetrics("mine")
    for loss, inserted in ((0.5, 10.0), (0.25, 30.0)):
        metrics.set({"loss": loss, "pairs/inserted": inserted, "tokens/trained": 100.0, "my/own": 1.0})
    assert port["sapo_loss", "learner"] == 0.25
    assert port["sapo_pairs_inserted", "pairs"] == 30.0
    assert port["sapo_tokens_trained", "learner"] == 200.0
    assert not any("own" in name for name, _ in port)


def test_actors_have_series_of_their_own_and_what_is_not_finite_has_none(port):
    metrics = RayMetrics("mine")
    for actor in ("actor-0", "actor-1"):
        metrics.set({"actor/tokens": 5.0, "actor/idle": None}, part=actor)
    metrics.set({"loss": float("nan")})
    actors = {key: value for key, value in port.items() if key[1].startswith("actor")}
    assert actors == {("sapo_actor_tokens", "actor-0"): 5.0, ("sapo_actor_tokens", "actor-1"): 5.0}
    assert ("sapo_loss", "learner") not in port


def test_all_is_said_again_but_what_is_gone(port):
    metrics = RayMetrics("mine")
    metrics.set({"loss": 0.5})
    metrics.set({"actor/tokens": 5.0}, part="actor-0")
    metrics.forget("actor-0")
    port.clear()
    metrics.refresh()
    assert port["sapo_loss", "learner"] == 0.5 and ("sapo_events_checkpoint", "run") in port
    assert not any(part == "actor-0" for _, part in port)


def test_events_of_the_log_are_counted(port):
    logger = logging.Logger("run")
    logger.addHandler(EventCounts(RayMetrics("mine")))
    logger.warning("actor-0 failed", extra={"event": "actor replaced"})
    logger.debug("step 4", extra={"event": "checkpoint"})
    logger.info("ranks meet: 2 s", extra={"event": "phase"})
    counted = {name.removeprefix("sapo_events_") for (name, _), value in port.items() if value == 1.0}
    assert counted == {"actor_replaced", "warnings", "checkpoint"}
