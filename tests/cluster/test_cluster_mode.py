"""The same job on a real cluster: a head node, two more, ``ray job submit``, figures on Ray's metrics port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ray.util.state import list_actors, list_jobs, list_nodes

from cluster.reports.grafana import dashboard
from cluster.reports.metrics import BY_NAME, METRICS
from support.paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RAY = str(Path(sys.executable).parent / "ray")
STEPS = 100_000
"""The run goes on until it is asked to stop."""


class Cluster(NamedTuple):
    gcs: str
    dashboard: str
    metrics: tuple[int, ...]
    """Ports of the nodes."""
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def start(
    *arguments: str, has: dict[str, float], environment: dict[str, str], log: Path, folder: Path = REPOSITORY
) -> subprocess.Popen:
    command = [
        RAY,
        "start",
        *arguments,
        f"--resources={json.dumps(has)}",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--block",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=log.open("w"), stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that are three raylets on this machine, two for ranks and one for engines, started in different
    folders; ended through the processes that hold them."""
    logs = tmp_path_factory.mktemp("ray")
    folder = tempfile.mkdtemp(prefix="sapo-", dir="/tmp")
    gcs, page, agent, client, *metrics = free_ports(7)
    paths = {"PATH": f"{Path(RAY).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    # Figures are on the port within a second; work is in Ray's timeline.
    quick = {"RAY_AUTH_MODE": "disabled", "RAY_metrics_report_interval_ms": "1000", "RAY_PROFILING": "1"}
    environment = os.environ | paths | quick
    environment.pop("RAY_ADDRESS", None)
    nodes = [
        start(
            "--head",
            f"--port={gcs}",
            f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={page}",
            f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics[0]}",
            f"--ray-client-server-port={client}",
            has={"trainer": 1.0},
            environment=environment,
            log=logs / "head.log",
        )
    ]
    wait_until(lambda: answers(f"http://127.0.0.1:{page}/api/version"), 120, "the head's dashboard")
    for port, has in zip(metrics[1:], ({"trainer": 1.0}, {"engines": 4.0}), strict=True):
        log = logs / f"node-{port}.log"
        nodes.append(
            start(
                f"--address=127.0.0.1:{gcs}",
                f"--metrics-export-port={port}",
                has=has,
                environment=environment,
                log=log,
                folder=logs,
            )
        )
        # Two that start at once would give their sockets the same names.
        wait_until(lambda log=log: "block forever" in log.read_text(), 120, f"node, see {log}")  # type: ignore[misc]
    wait_until(lambda: answers(f"http://127.0.0.1:{agent}/api/local_raylet_healthz"), 120, "agent that takes jobs")
    yield Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{page}", tuple(metrics), environment)
    for node in reversed(nodes):
        node.send_signal(signal.SIGTERM)
        node.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, f"no {what} within {timeout_s} s"
        time.sleep(0.5)


class Prometheus:
    """A real one that scrapes all nodes."""

    def __init__(self, ports: tuple[int, ...], folder: Path) -> None:
        program = str(shutil.which("prometheus"))
        (self.port,) = free_ports(1)
        targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
        job = f"{{job_name: ray, scrape_interval: 1s, static_configs: [{{targets: [{targets}]}}]}}"
        (folder / "prometheus.yml").write_text(f"scrape_configs: [{job}]\n")
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        self._process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=(folder / "prometheus.log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def series(self, run: str) -> list[dict[str, str]]:
        """Labels of all series of a run."""
        match = urllib.parse.quote(f'{{run="{run}"}}')
        found: list[dict[str, str]] = self._ask(f"series?match[]={match}") or []
        return found

    def value_count(self, expression: str) -> int:
        """How many series a query gives now.

        Raises:
            AssertionError: it is no PromQL.
        """
        answer = self._ask(f"query?{urllib.parse.urlencode({'query': expression})}")
        assert answer is not None, expression
        return len(answer["result"])

    def _ask(self, path: str) -> Any:
        answer = answers(f"http://127.0.0.1:{self.port}/api/v1/{path}")
        return json.loads(answer)["data"] if answer else None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


NOT_HERE = ("logratios/", "weights/parity", "time/publish_s")
"""Figures that an ORPO run has not, or not soon."""
OF_ROWS = ("eval/loss", "eval/nll_loss", "eval/logps/chosen")
"""Held-out rows without a rejected half have these alone, and what they are the sum of."""


def expected_names() -> set[str]:
    here = [m for m in METRICS if not m.name.startswith((*NOT_HERE, "eval/"))]
    return {m.prometheus_name for m in here} | {BY_NAME[name].prometheus_name for name in OF_ROWS}


def submitted(cluster: Cluster, task: Path, folder: Path, log: Path) -> subprocess.Popen:
    """The job, whose run is ``folder``/job."""
    command = [
        RAY,
        "job",
        "submit",
        f"--address={cluster.dashboard}",
        f"--working-dir={REPOSITORY}",
        "--",
        sys.executable,
        "-m",
        "cluster",
        "train",
        "configs/demo.yaml",
        "name=job",
        f"output_dir={folder}",
        f"model.path={task / 'model'}",
        f"data.path={task / 'train.jsonl'}",
        f"learner.steps={STEPS}",
        "learner.batch_size=8",
        "data.held_out=0.1",
        "data.held_out_every=20",
        # Two ranks that may not share a node, and engines on the third.
        "cluster.strategy=STRICT_SPREAD",
        "cluster.learner_resources={trainer: 1}",
        "cluster.actor_resources={engines: 1}",
    ]
    return subprocess.Popen(command, env=cluster.environment, stdout=log.open("w"), stderr=subprocess.STDOUT)


def spans(cluster: Cluster, folder: Path) -> list[dict[str, Any]]:
    """Events of ``ray timeline``."""
    timeline = subprocess.run(
        [RAY, "timeline", f"--address={cluster.gcs}"],
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    written = re.search(r"\S+timeline\S+\.json", timeline.stdout + timeline.stderr)
    assert written, timeline.stderr
    events: list[dict[str, Any]] = json.loads(Path(written[0]).read_text())
    Path(written[0]).unlink()
    return events


def ask(cluster: Cluster, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """``sapo`` with these arguments, at the cluster or at ``address``."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments, "--address", address or cluster.gcs],
        cwd=REPOSITORY,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def queries() -> list[str]:
    """Of the Grafana dashboard, as Grafana would send them for the run."""
    panels = [inner for panel in dashboard()["panels"] for inner in (panel, *panel.get("panels", ()))]
    sent = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [text.replace("$run", "job").replace("$__rate_interval", "15s") for text in sent]


def look_from(cluster: Cluster, node: str, folder: Path) -> dict[str, Any]:
    """What ``sapo status`` says in a job that runs on a node which has ``node``."""
    said = folder / "board.json"
    look = f"{sys.executable} -m cluster status --json --address {cluster.gcs} > {said}.part && mv {said}.part {said}"
    submit = [RAY, "job", "submit", f"--address={cluster.dashboard}", "--submission-id=look", "--no-wait"]
    subprocess.run(
        [*submit, f"--entrypoint-resources={json.dumps({node: 0.01})}", "--", "bash", "-c", look],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wait_until(said.exists, 120, "answer of sapo status")
    board: dict[str, Any] = json.loads(said.read_text())
    return board


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus is installed")
def test_a_submitted_job_trains_over_three_nodes_and_shows_what_it_does(cluster, task, tmp_path):
    log = tmp_path / "submit.log"
    job = submitted(cluster, task, tmp_path, log)
    lines = tmp_path / "job" / "metrics.jsonl"
    wait_until(lambda: job.poll() is not None or (lines.exists() and lines.read_text()), 300, "first step")
    assert job.poll() is None, log.read_text()
    asked = ask(cluster, "actors", "1", "--run", "job")

    prometheus = Prometheus(cluster.metrics, tmp_path)
    expected = expected_names()

    def missing() -> set[str]:
        """Figures without a series, or in a query of the dashboard that gives no curve."""
        empty = [query for query in queries() if not prometheus.value_count(query)]
        without_curve = {name for query in empty for name in re.findall(r"ray_\w+", query)} & expected
        return without_curve | expected - {series["__name__"] for series in prometheus.series("job")}

    try:
        board = look_from(cluster, "engines", tmp_path)
        actors = list_actors(cluster.dashboard, filters=[("state", "=", "ALIVE")], detail=True)
        nodes = {node.node_id: node.resources_total for node in list_nodes(cluster.dashboard)}
        looks = [job for job in list_jobs(cluster.dashboard, detail=True) if job.submission_id == "look"]
        wait_until(lambda: not missing() or job.poll() is not None, 120, f"of {missing()}")
        lacking, series = missing(), prometheus.series("job")
    finally:
        prometheus.close()
    events = spans(cluster, tmp_path)
    stopped = ask(cluster, "stop", "--run", "job")
    assert job.wait(300) == 1, log.read_text()
    assert not lacking, log.read_text()
    assert {s["part"] for s in series} >= {"learner", "buffer", "pairs", "weights", "run", "actor-0"}
    assert {s["__name__"] for s in series} <= {m.prometheus_name for m in METRICS}

    assert "engines" in nodes[looks[0].driver_node_id]  # where ``sapo status`` ran
    assert (board["run"], board["method"], board["total_steps"]) == ("job", "sapo", STEPS)
    assert board["step"] > 0 and board["buffer"]["size"] > 0 and board["metrics"]["loss"] is not None
    assert board["actors"][0]["name"] == "actor-0"
    at = {actor.name: nodes[actor.node_id] for actor in actors}
    assert "engines" in at["job-actor-0"] and "trainer" in at["job-rank-0"] and "trainer" in at["job-rank-1"]
    said = {actor.name: actor.repr_name for actor in actors}
    assert said["job-actor-0"] == "generation actor-0"
    assert all(said[name] for name in said if name.startswith("job-"))

    assert {event["cat"] for event in events} >= {"plan", "write", "draw", "step", "publish"}
    # A row for each process: the actor's spans are not in the driver's.
    assert not {e["tid"] for e in events if e["cat"] == "write"} & {e["tid"] for e in events if e["cat"] == "draw"}
    text = log.read_text()
    assert asked.returncode == 0, f"{asked.stderr}\n{text}"
    assert "asked run job for +1 actor(s)" in asked.stdout
    assert "3 node(s), 6 CPUs" in text
    assert "1 actor(s) join on request" in text
    assert stopped.returncode == 0, f"{stopped.stderr}\n{text}"
    metrics = [json.loads(line) for line in lines.read_text().splitlines()]
    last = len(metrics)
    assert [m["step"] for m in metrics] == list(range(1, last + 1))
    assert f"stopped at step {last} on request" in text
    assert (tmp_path / "job" / "checkpoints" / f"step-{last}" / "policy" / "model.safetensors").exists()


def test_relative_paths_of_the_driver_are_found_by_nodes_that_were_started_elsewhere(cluster, task, tmp_path):
    shutil.copytree(task / "model", tmp_path / "start" / "model")
    shutil.copy(task / "train.jsonl", tmp_path / "start" / "rows.jsonl")
    values = {
        "name": "r",
        "model": {"path": "model", "dtype": "float32"},
        "data": {"path": "rows.jsonl", "max_length": 32, "max_prompt_length": 16},
        "learner": {"ranks": 2, "batch_size": 4, "steps": 1},
        "cluster": {"strategy": "STRICT_SPREAD"},
    }
    (tmp_path / "start" / "run.yaml").write_text(json.dumps(values))

    done = subprocess.run(
        [sys.executable, "-m", "cluster", "sft", "run.yaml", f"cluster.address={cluster.gcs}"],
        cwd=tmp_path / "start",
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "start" / "runs" / "r" / "checkpoints" / "step-1" / "policy" / "model.safetensors").exists()


def test_no_such_run_and_no_such_cluster_are_one_line(cluster):
    unknown = ask(cluster, "actors", "1", "--run", "nothing")
    assert unknown.returncode == 2
    assert "run nothing: no such run is going on" in unknown.stderr and "Traceback" not in unknown.stderr
    (port,) = free_ports(1)
    nowhere = ask(cluster, "actors", "1", "--run", "job", address=f"127.0.0.1:{port}")
    assert nowhere.returncode == 2
    assert f"cluster.address 127.0.0.1:{port}" in nowhere.stderr and "Traceback" not in nowhere.stderr
