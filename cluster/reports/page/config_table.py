"""Configs side by side: what differs between runs, and between a run and its recipe or the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from cluster.config.run_config import RunConfig
from cluster.config.validation_message import inner_section, shown
from contracts.section import Section

ABSENT = "—"
"""Shown where a config does not have the key, as another version wrote it."""
REQUIRED = "required"


@dataclass(frozen=True)
class Difference:
    """One key whose values are not all the same."""

    key: str
    values: tuple[str, ...]
    """One for each config, in their order."""


def differences(configs: Sequence[dict[str, Any]]) -> list[Difference]:
    """Keys of flat configs whose values differ, or that not all of them have."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [
        Difference(key, tuple(shown(config[key]) if key in config else ABSENT for config in configs))
        for key in keys
        if any(key not in config for config in configs) or any(config[key] != configs[0][key] for config in configs)
    ]


def changed(base: dict[str, Any], config: dict[str, Any]) -> list[Difference]:
    """Keys of a run that the base has with another value, or not at all; what only the base has is of a newer version
    and was no choice of the run."""
    return [difference for difference in differences([base, config]) if difference.key in config]


def default_values() -> dict[str, Any]:
    """Every key of a config that has no section below it, with its default."""
    return _defaults(RunConfig)


def _defaults(section: type[Section], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        inner = inner_section(field)
        if inner is not None and field.default is not None and not isinstance(field.default, tuple):
            values |= _defaults(inner, f"{prefix}{name}.")
        elif field.is_required():
            values[prefix + name] = REQUIRED
        else:
            default = field.get_default()
            # As JSON and YAML have it.
            values[prefix + name] = to_jsonable_python(default)
    return values
