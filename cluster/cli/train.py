"""``sapo train`` and ``sapo sft``: a run from start to end."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from cluster.cli.arguments import ConfigFile, DryRun, Overrides
from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's newest valid checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="A config key that a resumed run changes on purpose."),
]
STOPPED = 3
"""Exit status of a run that ``sapo stop`` ended."""
SIGNALLED = 128
"""A signal's number is added to it for the exit status, as shells have it."""


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_change: AllowChange = None,
    dry_run: DryRun = False,
) -> None:
    """Train as CONFIG says: SAPO, SFT, offline DPO/ORPO on a dataset of pairs, or a replay of recorded pairs."""
    _run(load_config(config, overrides or []), resume, overwrite, allow_change or [], dry_run)


def sft(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_change: AllowChange = None,
    dry_run: DryRun = False,
) -> None:
    """Supervised fine-tuning: the starting model for SAPO. Sets method, objective and reference accordingly."""
    forced = ["method=sft", "objective.name=sft", "reference.mode=none"]
    _run(load_config(config, [*(overrides or []), *forced]), resume, overwrite, allow_change or [], dry_run)


def _run(config: RunConfig, resume: bool, overwrite: bool, allow_changes: list[str], only_check: bool) -> None:
    if only_check:
        from cluster.run.dry_run import dry_run

        print("\n".join(dry_run(config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)))
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is imported
    from cluster.run.stopping import Interrupted, Stopped
    from cluster.run.train import train as run

    try:
        result = run(config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    except Stopped as stopped:
        print(f"sapo: {stopped}; --resume goes on from there", file=sys.stderr)
        sys.exit(SIGNALLED + stopped.signum if stopped.signum else STOPPED)
    except (KeyboardInterrupt, Interrupted) as interrupted:
        saved = next(config.run_dir.glob("checkpoints/step-*/run.json"), None)
        then = "--resume goes on from the newest checkpoint" if saved else "there is no checkpoint yet"
        print(f"sapo: interrupted; {then}", file=sys.stderr)
        sys.exit(SIGNALLED + (interrupted.signum if isinstance(interrupted, Interrupted) else signal.SIGINT))
    print(f"policy: {result.policy}\nEMA: {result.ema}\nmetrics: {result.folder / 'metrics.jsonl'}")
