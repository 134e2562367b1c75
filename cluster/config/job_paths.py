"""Paths inside a Ray job, whose working directory is a temporary copy that Ray deletes."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.config.run_config import RunConfig
from contracts.errors import UserError

COPIES = "working_dir_files"
"""Ray's folder of the copies that ``ray job submit --working-dir`` makes."""


def anchored(config: RunConfig, here: Path, home: Path | None) -> RunConfig:
    """The config as a job in ``here`` has to run it: relative paths start from ``home``.

    Data and models that were uploaded with the job are found where they are; what the job writes must not be lost
    with its copy. Outside of such a copy nothing changes.

    Raises:
        UserError: a path is relative and there is no ``home``.
    """
    if COPIES not in here.parts:
        return config

    def found(path: str | None) -> str | None:
        """Absolute where something is there; else as it was, a hub name perhaps."""
        places = [base / path for base in (here, home) if base and path]
        return next((str(place) for place in places if place.exists()), path)

    data, model = config.data, config.model
    return config.model_copy(
        update={
            "output_dir": str(_under(config.output_dir, "output_dir", home)),
            "data": data.model_copy(
                update={
                    "path": found(data.path),
                    "sources": tuple(s.model_copy(update={"path": found(s.path)}) for s in data.sources),
                    "held_out": found(data.held_out) if isinstance(data.held_out, str) else data.held_out,
                    "chat_template": found(data.chat_template),
                }
            ),
            "model": model.model_copy(update={"path": found(model.path), "tokenizer": found(model.tokenizer)}),
        }
    )


def checkout() -> Path | None:
    """The folder that this project is installed from (``pip install -e``, ``make setup``); None for a wheel."""
    try:
        text = Distribution.from_name("sapo").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if not text or not json.loads(text).get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(json.loads(text)["url"]).path))


def _under(path: str, key: str, home: Path | None) -> Path:
    if Path(path).is_absolute():
        return Path(path)
    if home is None:
        raise UserError(f"{key} {path}: relative to a job's working directory, which Ray deletes: make it absolute")
    return home / path
