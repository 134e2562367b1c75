"""``sapo export``: a trained model as a Hugging Face folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class What(StrEnum):
    """As ``cluster.export.source.What``, which takes a second to import."""

    policy = "policy"
    average = "average"
    adapter = "adapter"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder (its newest), or a step-N in it.")
    ],
    to: Annotated[Path, typer.Option(help="Folder to write; it must not be there.")],
    what: Annotated[
        What, typer.Option(help="The model that is trained, its average (EMA), or the policy's LoRA adapter.")
    ] = What.policy,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: as in the checkpoint.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, such as 500MB.")] = "5GB",
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `sapo eval --json` printed, for the model card.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub name of the starting model, where the run read it from a folder.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="For the model card, as the hub writes it, such as apache-2.0.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="Upload to this new repository of the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
) -> None:
    """Write a trained model as a folder for others: weights, tokenizer, chat template, generation config, model card.

    Nothing is overwritten.
    """
    from cluster.export import source as sources
    from cluster.export.export import ExportJob
    from cluster.export.export import export as run
    from cluster.export.model_card import CardExtras

    extras = CardExtras(base_model, license, evaluation)
    job = ExportJob(
        source, sources.What(what.value), to, dtype and dtype.value, max_shard_size, push_to_hub, private, extras
    )
    done = run(job)
    print(f"wrote {what.value} of {done.source.checkpoint} to {to}: {done.weight_bytes:,} bytes of weights")
    print(f"files: {', '.join(done.files)}")
    if done.address:
        print(f"uploaded: {done.address}")
