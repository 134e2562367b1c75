"""Reads a run's configuration: a YAML file, changed by ``key.sub=value``, validated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import MarkedYAMLError, YAMLError

from cluster.config.run_config import RunConfig
from cluster.config.validation_message import validation_message
from contracts.errors import UserError, first_line

COMMAND_LINE = "command line"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``key.sub=value`` overrides, validate.

    Raises:
        UserError: one line that names the file or key, the value and what would be right.
    """
    path = Path(path)
    merged = _read_yaml(path)
    for override in overrides:
        merged = _overridden(merged, override)
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        message = f"{error.full_key}: {first_line(error)}"
        raise UserError(f"{_source(str(path), message, overrides)}: {message}") from error
    assert isinstance(values, dict)
    return validate_config({str(key): value for key, value in values.items()}, str(path), overrides)


def _source(path: str, message: str, overrides: Sequence[str]) -> str:
    """Where what ``message`` is about was set: in the file, on the command line, or both."""
    named = re.split(r"[: ]", message, maxsplit=1)[0]
    keys = [override.partition("=")[0] for override in overrides]
    if any(f"{named}.".startswith(f"{key}.") or f"{key}.".startswith(f"{named}.") for key in keys):
        return COMMAND_LINE
    spoken = any(re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", message) for key in keys)
    return f"{path} and {COMMAND_LINE}" if spoken else path


def validate_config(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate plain values.

    Args:
        source: what the values came from, for the message.
        overrides: ``key.sub=value`` that changed some of them.

    Raises:
        UserError: one line that names ``source``, the key, the value and what would be right.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        message = validation_message(error.errors(), RunConfig)
        raise UserError(f"{_source(source, message, overrides)}: {message}") from error


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; a YAML file is expected") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem}") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {first_line(error)}") from error
    except OSError as error:  # OmegaConf raises one without an errno for a lone scalar
        reason = error.strerror or "a mapping of sections is expected, found a single value"
        raise UserError(f"{path}: {reason}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: a mapping of sections is expected, found a list")
    return loaded


def _overridden(config: DictConfig, override: str) -> DictConfig:
    key, assigned, _ = override.partition("=")
    if not assigned or not all(key.split(".")):
        raise UserError(f"override {override!r}: write it as key.sub=value")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except MarkedYAMLError as error:
        raise UserError(f"override {override!r}: not YAML: {error.problem}") from error
    except TypeError as error:
        raise UserError(f"override {override!r}: {key} is a section; set its keys, as {key}.KEY=value") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"override {override!r}: {first_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return merged
