"""Every metric is shown once, and rates follow from counts and times."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.reports.page.panels import chosen_panels, with_rates
from cluster.reports.page.run_record import read_run
from cluster.reports.page.time_use import AROUND_RANKS, REST, time_use
from support.run_folders import make_run


def test_no_metric_is_lost_and_none_is_shown_twice(tmp_path: Path) -> None:
    columns = with_rates(read_run(make_run(tmp_path / "r")))
    main, others = chosen_panels(set(columns))
    shown = [name for panel in (*main, *others) for name in panel.metrics]
    assert sorted(shown) == sorted(columns)
    assert "my/own" in {panel.title for panel in others}
    assert all(panel.metrics for panel in main)


def test_rates_are_counts_over_the_time_of_steps(tmp_path: Path) -> None:
    columns = with_rates(read_run(make_run(tmp_path / "r", learner={"batch_size": 8})))
    np.testing.assert_allclose(columns["throughput/pairs"], 8 / 0.5)
    np.testing.assert_allclose(columns["throughput/trained"], 700 / 0.5)
    np.testing.assert_allclose(columns["throughput/generated"][15:], 100 / 0.5)
    np.testing.assert_allclose(columns["idle/for_pairs"], 0.1)


def test_the_parts_of_the_time_add_up_to_it(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r"))
    parts = {part.label: part for part in time_use(run)}
    np.testing.assert_allclose(sum(part.seconds for part in parts.values()), run.column("time/step_s"))
    np.testing.assert_allclose(sum(part.share for part in parts.values()), 1.0)
    np.testing.assert_allclose(parts[AROUND_RANKS].seconds, 0.35 - 0.25 - 0.05)
    np.testing.assert_allclose(parts[REST].share, 0.1 / 0.5)
