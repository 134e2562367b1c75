"""The Grafana dashboard shows every metric of the list and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.reports.grafana import FILE, as_json
from cluster.reports.metrics import METRICS


def panels() -> list[dict[str, Any]]:
    top = json.loads(as_json())["panels"]
    return [inner for panel in top for inner in (panel, *panel.get("panels", ()))]


def test_it_refers_to_every_metric_and_to_no_other():
    expressions = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    assert set(re.findall(r"ray_\w+", " ".join(expressions))) == {metric.prometheus_name for metric in METRICS}
    assert set(re.findall(r"ray_\w+", as_json())) == {metric.prometheus_name for metric in METRICS}


def test_plots_have_numbers_of_their_own_and_do_not_overlap():
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(as_json())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells


def test_a_total_is_drawn_as_a_rate():
    by_expression = {target["expr"] for panel in panels() for target in panel.get("targets", ())}
    assert 'ray_sapo_loss{run=~"$run"}' in by_expression
    assert 'rate(ray_sapo_tokens_trained{run=~"$run"}[$__rate_interval])' in by_expression


def test_the_command_writes_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from cluster.cli.dashboard import VARIABLE, dashboard
    from contracts.errors import UserError

    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"--ray-folder .* is not there: start Ray"):
        dashboard(None, tmp_path / "ray")
    folder = tmp_path / "ray" / "session_latest" / "metrics" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    dashboard(None, tmp_path / "ray")
    assert json.loads((folder / FILE).read_text())["title"] == "SAPO"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    dashboard(None, tmp_path / "ray")
    assert (tmp_path / "named" / FILE).exists()
    dashboard(tmp_path / "out", tmp_path / "ray")
    assert f"wrote {tmp_path / 'out' / FILE}" in capsys.readouterr().out


@pytest.mark.contract
def test_ray_puts_its_own_dashboards_into_the_same_folder():
    import inspect

    from ray.dashboard.modules.metrics import metrics_head

    from cluster.cli.dashboard import VARIABLE

    assert metrics_head.GRAFANA_DASHBOARD_OUTPUT_DIR_ENV_VAR == VARIABLE
    source = inspect.getsource(metrics_head.MetricsHead.__init__)
    assert '"metrics"' in source and '"grafana"' in source and '"dashboards"' in source


@pytest.mark.contract
def test_every_field_is_known_to_grafanas_own_models():
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    plugins.register_default_plugins()  # time series, Prometheus
    written = json.loads(as_json())
    read = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(written)))

    def lost(ours: Any, theirs: Any, path: str) -> list[str]:
        if isinstance(ours, dict):
            return [p for key, value in ours.items() for p in lost(value, theirs.get(key), f"{path}.{key}")]
        if isinstance(ours, list):
            assert len(ours) == len(theirs), path
            return [p for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for p in lost(a, b, f"{path}[{i}]")]
        return [] if ours == theirs else [path]

    assert not lost(written, read, "dashboard")
