"""``sapo train`` and ``sapo sft``: a run from start to end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.arguments import ConfigFile, Overrides
from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")]
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def train(
    config: ConfigFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train as CONFIG says: SAPO, SFT, offline DPO/ORPO on a dataset of pairs, or a replay of recorded pairs."""
    _run(load_config(config, overrides or []), resume, overwrite)


def sft(config: ConfigFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Supervised fine-tuning: the starting model for SAPO. Sets method, objective and reference accordingly."""
    forced = ["method=sft", "objective.name=sft", "reference.mode=none"]
    _run(load_config(config, [*(overrides or []), *forced]), resume, overwrite)


def _run(config: RunConfig, resume: bool, overwrite: bool) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is imported
    from cluster.config.job_paths import anchored, checkout
    from cluster.run.train import train as run

    try:
        result = run(anchored(config, Path.cwd(), checkout()), resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        saved = next(config.run_dir.glob("checkpoints/step-*/run.json"), None)
        then = "--resume goes on from the newest checkpoint" if saved else "there is no checkpoint yet"
        print(f"sapo: interrupted; {then}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(f"policy: {result.policy}\nEMA: {result.ema}\nmetrics: {result.folder / 'metrics.jsonl'}")
