"""``sapo plan``: whether a run fits a cluster and how long it takes, before anything starts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cluster.cli.arguments import ConfigFile, Overrides
from cluster.cli.output import Output
from cluster.config.loading import load_config
from contracts.errors import UserError

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig
    from cluster.planning.plan import Machines, Plan, Split
    from cluster.planning.workload import Workload

DOES_NOT_FIT = 1
"""Exit status."""
SHOWN_SPLITS = 5
PROMPT_SHARE, RESPONSE_SHARE = 0.3, 0.15
"""Of data.max_length, where the data can't be read: as in the paper's data under its limit of 2,048."""


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs on each node; 0: CPU.")] = 0,
    gpu_memory: Annotated[float, typer.Option(min=1.0, help="Memory of a GPU in GiB.")] = 80.0,
    device: Annotated[str | None, typer.Option(help="h100, h200, a100 or cpu; default: h100, or cpu.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1.0, help="Mean; default: of the data.")] = None,
    response_tokens: Annotated[float | None, typer.Option(min=1.0, help="Mean; default: of the data.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Usable rows; default: of the data.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Finished run on such a machine, whose speed counts.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a run needs and how long it takes, by arithmetic: nothing is started, no weights are read.

    Exit status 1: it does not fit.
    """
    from cluster.planning.calibration import calibrate as factors
    from cluster.planning.model_shape import read_shape
    from cluster.planning.plan import Machines, make_plan
    from cluster.planning.throughput import DEVICES, Calibration

    run = load_config(config, overrides or [])
    kind = device or ("h100" if gpus else "cpu")
    if kind not in DEVICES or (kind == "cpu") == bool(gpus):
        known = [name for name in DEVICES if (name == "cpu") != bool(gpus)]
        raise UserError(f"--device {kind}: with --gpus {gpus} it must be {' or '.join(known)}")
    if (prompt_tokens is None) != (response_tokens is None):
        raise UserError("--prompt-tokens and --response-tokens go together: give both, or none")
    machines = Machines(nodes, gpus, gpu_memory * 2**30, DEVICES[kind])
    shape = read_shape(run.model)
    calibration = factors(calibrate, machines.device, machines.engine_gpu_bytes) if calibrate else Calibration()
    workload, note = _workload(run, prompt_tokens, response_tokens, rows)
    made = make_plan(run, shape, workload, machines, calibration)
    if as_json:
        facts = {"shape": asdict(shape), "workload": asdict(workload), "calibration": asdict(calibration)}
        # Not a number of JSON's: a side that never comes to an end.
        print(json.dumps(facts | asdict(made)).replace("Infinity", "null"))
    else:
        output = Output()
        output.write_line(
            f"{run.model.path}: {shape.parameters / 1e6:,.1f} M parameters, {shape.trainable / 1e6:,.1f} M trained"
        )
        output.write_line(
            f"mean prompt {workload.prompt:.0f}, response {workload.response:.0f}, segment {workload.segment:.0f} "
            f"tokens: {note}"
        )
        speed = f"measured by {calibrate}" if calibrate else f"assumed for {kind}, not measured: --calibrate RUN"
        output.write_line(f"speed: {speed}")
        _print(output, run, made, machines)
    if made.own.wrong:
        sys.exit(DOES_NOT_FIT)


def _workload(run: RunConfig, prompt: float | None, response: float | None, rows: int | None) -> tuple[Workload, str]:
    """Lengths of the rows, and where they are from."""
    from dataclasses import replace

    from cluster.planning.workload import assumed, of_table
    from cluster.run.inputs import read_inputs

    if prompt is not None and response is not None:
        return assumed(run, prompt, response, rows), "as given"
    if run.method == "replay":
        raise UserError("method replay: give --prompt-tokens and --response-tokens of the recorded pairs")
    try:
        inputs = read_inputs(run)
    except UserError as error:
        limit = run.data.max_length
        guessed = assumed(run, PROMPT_SHARE * limit, RESPONSE_SHARE * limit, rows)
        return guessed, f"assumed from data.max_length, as the data can't be read ({error})"
    found = of_table(inputs.table, run.generation.segment_length)
    return (replace(found, rows=rows) if rows else found), "; ".join(inputs.report)


def _print(output: Output, run: RunConfig, made: Plan, machines: Machines) -> None:
    output.print(_stages(made, run))
    if made.engine:
        engine = made.engine
        output.write_line(
            f"engine: weights {_gib(engine.weights)}, KV cache {_gib(engine.kv_cache)} = "
            f"{engine.kv_cache / engine.kv_bytes_per_token:,.0f} tokens, {engine.concurrency} requests at once "
            f"(generation.max_concurrent_requests {run.generation.max_concurrent_requests})"
        )
    store = "unknown without rows" if made.store_bytes is None else _gib(made.store_bytes)
    actor = f", an actor {_gib(made.actor_host_bytes)}" if made.engine else ""
    each = f"a rank {_gib(made.rank_host_bytes)}{actor}"
    output.write_line(f"fullest node: host memory {_gib(made.host_bytes)} ({each}), object store {store}")
    output.write_line(
        f"disk: {_gib(made.checkpoint_bytes)} a checkpoint, {_gib(made.checkpoints_kept_bytes)} while one is written "
        f"(checkpoint.keep {run.checkpoint.keep})"
    )
    output.print(_splits(made, run))
    if made.own.wrong:
        output.write_line(f"does not fit: {made.own.wrong}", style="bold red")
    best = made.best
    if best is not made.own and not best.wrong:
        gain = made.own.step.total_s / best.step.total_s if not made.own.wrong else None
        by = f", {gain:.2f} times as fast" if gain else ""
        actors = f" generation.actors={best.actors}" if run.method == "sapo" else ""
        output.write_line(f"better: learner.ranks={best.ranks}{actors}{by}")
    if made.steps is None:
        output.write_line("steps: unknown; give learner.steps or --rows")
    else:
        output.write_line(
            f"run: {made.steps:,} steps, {_duration(made.seconds or 0.0)}, {made.trained_tokens or 0:,.0f} tokens "
            f"trained, {made.generated_tokens or 0:,.0f} generated"
        )


def _stages(made: Plan, run: RunConfig) -> Table:
    table = Table(
        title=f"GiB of a rank, {made.own.ranks} ranks, by learner.zero_stage ({run.learner.zero_stage} is set)"
    )
    kinds = ("weights", "gradients", "masters", "optimizer", "ema", "reference", "gathering", "activations", "logits")
    for head in ("ZeRO", *kinds, "in host memory", "on device"):
        table.add_column(head, justify="right")
    for stage, memory in made.stages.items():
        cells = [f"{getattr(memory, kind) / 2**30:.2f}" for kind in kinds]
        table.add_row(str(stage), *cells, f"{memory.on_host / 2**30:.2f}", f"{memory.on_device / 2**30:.2f}")
    return table


def _splits(made: Plan, run: RunConfig) -> Table:
    table = Table(title="seconds of a step")
    for head in (
        "ranks",
        "actors",
        "learner",
        "publication",
        "generation",
        "step",
        "pairs/s",
        "learner idle",
        "actors idle",
        "",
    ):
        table.add_column(head, justify="right")
    for split in (made.own, *made.others[:SHOWN_SPLITS]):
        table.add_row(*_row(split, run, "config" if split is made.own else ""))
    return table


def _row(split: Split, run: RunConfig, label: str) -> list[str]:
    step = split.step
    if split.wrong and step.total_s == float("inf"):
        return [str(split.ranks), str(split.actors), f"{step.learner_s:.3g}", *["-"] * 6, label]
    seconds = [f"{value:.3g}" for value in (step.learner_s, step.publication_s, step.generation_s, step.total_s)]
    return [
        str(split.ranks),
        str(split.actors),
        *seconds,
        f"{split.pairs_per_s(run):.3g}",
        f"{step.learner_idle:.0%}",
        f"{step.actors_idle:.0%}" if split.actors else "-",
        f"{label} {split.wrong}".strip(),
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    from cluster.reports.duration import duration

    return duration(seconds)
