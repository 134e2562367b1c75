"""The command line: ``sapo train | sft | eval | generate``, what is asked of a run, what is said of one.

What takes seconds to import (torch, Ray, vLLM) is imported by the commands that need it, when they run.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from cluster.cli.ask import actors, checkpoint, stop
from cluster.cli.compare import compare
from cluster.cli.config import config
from cluster.cli.dashboard import dashboard
from cluster.cli.data import data
from cluster.cli.debug import debug
from cluster.cli.doctor import doctor
from cluster.cli.evaluate import evaluate
from cluster.cli.export import export
from cluster.cli.generate import generate
from cluster.cli.judge import judge
from cluster.cli.plan import plan
from cluster.cli.recipes import recipes
from cluster.cli.report import report
from cluster.cli.status import status
from cluster.cli.train import sft, train
from contracts.errors import UserError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Align a language model from supervised data alone (SAPO, arXiv 2405.20830): a moving average of the model
rewrites segments of your responses, and the model learns to prefer the originals.

**First run:** `python -m demo data`, `sapo recipes demo-sft demo`, `sapo sft configs/demo-sft.yaml`,
`sapo train configs/demo.yaml`.

**Your own:** `sapo recipes` lists recipes and copies them; set `model.path` and `data.path`.
`sapo config --explain` explains every field, and `sapo data my.yaml` shows what becomes of your data.
Any field can be overridden on the command line: `sapo train my.yaml learner.steps=500 optimizer.lr=1e-6`.

**Look:** `sapo doctor` says what this machine lacks, `sapo plan CONFIG` what a run needs and how long it takes;
`sapo status` what a run is doing; `sapo report RUN` and `sapo compare RUN…` write a page to look at.

**Ship:** `sapo export RUN --to FOLDER` writes a folder that transformers and vLLM load, with a model card.

**On a cluster:** `ray job submit --working-dir . -- python -m cluster train my.yaml`.""",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "sft": sft,
    "eval": evaluate,
    "judge": judge,
    "generate": generate,
    "actors": actors,
    "checkpoint": checkpoint,
    "stop": stop,
    "status": status,
    "recipes": recipes,
    "config": config,
    "data": data,
    "export": export,
    "report": report,
    "compare": compare,
    "plan": plan,
    "doctor": doctor,
    "debug": debug,
    "dashboard": dashboard,
}
TAKES_NEGATIVE = {"actors"}
"""Commands with an argument that may begin with a minus; what else does is checked as its value."""
for name, command in COMMANDS.items():
    app.command(name, context_settings={"ignore_unknown_options": name in TAKES_NEGATIVE})(command)


NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
"""Errors that even looking whether a path is there may raise. The path is the user's to mend."""


def main() -> None:
    """Run the command line; what the user must mend is one line on stderr and exit status 2. Other errors are bugs and
    keep their traceback."""
    # A check or an objective of the user's own lies beside the configuration; Ray hands the path on to the ranks.
    sys.path.append(os.getcwd())
    # transformers imports DeepSpeed, which warns of a driver without a GPU; ranks set their own logging.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        # Not its "standalone mode", which frames a wrong option in a box of six lines.
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="sapo", standalone_mode=False))
    except TyperException as error:
        context = getattr(error, "ctx", None)
        remedy = f" (see `{context.command_path} --help`)" if context else ""
        print(f"sapo: {' '.join(error.format_message().split()).rstrip('.')}{remedy}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"sapo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_PATH or not error.filename:
            raise
        print(f"sapo: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
