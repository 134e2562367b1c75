"""Paths of a run, made absolute once, at the start: processes on other nodes were started in folders of their own.

A Ray job's working directory is a temporary copy that Ray deletes: what a job writes goes elsewhere.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.config.run_config import RunConfig
from contracts.errors import UserError

COPIES = "working_dir_files"
"""Ray's folder of the copies that ``ray job submit --working-dir`` makes."""


def resolved(config: RunConfig, here: Path, home: Path | None) -> RunConfig:
    """The config with an absolute path wherever something is there; what is not may be a hub name and stays.

    Relative paths start from ``here``. In a job, where ``here`` is a copy, what was uploaded is found in it, everything
    else and all that the job writes is under ``home``.

    Raises:
        UserError: in a job, a path is relative and there is no ``home``.
    """
    in_job = COPIES in here.parts
    output = _under(config.output_dir, "output_dir", home) if in_job else here / _own(config.output_dir)
    places = [base for base in (here, home if in_job else None) if base]

    def found(path: str | None) -> str | None:
        if not path:
            return path
        candidates = (base / _own(path) for base in places)
        return next((str(place) for place in candidates if place.exists()), path)

    data, model, evaluation = config.data, config.model, config.evaluation
    return config.model_copy(
        update={
            "output_dir": str(output),
            "data": data.model_copy(
                update={
                    "path": found(data.path),
                    "sources": tuple(s.model_copy(update={"path": found(s.path)}) for s in data.sources),
                    "held_out": found(data.held_out) if isinstance(data.held_out, str) else data.held_out,
                    "chat_template": found(data.chat_template),
                }
            ),
            "evaluation": evaluation.model_copy(update={"prompts": found(evaluation.prompts)}),
            "model": model.model_copy(update={"path": found(model.path), "tokenizer": found(model.tokenizer)}),
        }
    )


def resolve_paths(config: RunConfig) -> RunConfig:
    """``resolved`` for this process."""
    return resolved(config, Path.cwd(), checkout())


def checkout() -> Path | None:
    """The folder that this project is installed from (``pip install -e``, ``make setup``); None for a wheel."""
    try:
        text = Distribution.from_name("sapo").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if not text or not json.loads(text).get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(json.loads(text)["url"]).path))


def _own(path: str) -> Path:
    return Path(os.path.expanduser(path))  # pathlib's raises where there is no such user


def _under(path: str, key: str, home: Path | None) -> Path:
    if _own(path).is_absolute():
        return _own(path)
    if home is None:
        raise UserError(f"{key} {path}: relative to a job's working directory, which Ray deletes: make it absolute")
    return home / path
