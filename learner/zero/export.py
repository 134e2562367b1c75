"""A model as a Hugging Face folder: configurations, and weights as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from learner.model.dropout import dropout_as_at_the_start
from learner.model.forward import causal_model
from learner.zero.tensor_files import WeightFiles
from learner.zero.weights import WeightMetadata, metadata


def save_model(
    folder: Path,
    configuration: Mapping[str, bytes],
    announced: Sequence[WeightMetadata],
    weights: Iterable[tuple[str, Tensor]],
) -> None:
    """A model with weights that have a checkpoint's names and shapes already.

    Args:
        configuration: of ``configuration_files``.
        announced: what ``weights`` yields.
        weights: written as they come; one at a time is held in host memory.
    """
    for name, content in configuration.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    files = WeightFiles(folder, announced)
    for name, tensor in weights:
        files.put(name, tensor)
    files.close()


def saved_metadata(module: nn.Module) -> list[WeightMetadata]:
    """The weights that an export has: all but those that the model's class leaves out."""
    unwanted = set(causal_model(module)._keys_to_ignore_on_save or ())
    return [weight for weight in metadata(module) if weight[0] not in unwanted]


def configuration_files(model: PreTrainedModel, ends: Sequence[int]) -> dict[str, bytes]:
    """What ``save_configuration`` writes, by name: taken once, because writing it changes the model for a moment, and
    checkpoints are written while it trains."""
    with TemporaryDirectory(prefix="sapo-") as name:
        save_configuration(Path(name), model, ends)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(name)): path.read_bytes() for path in files}


def save_configuration(folder: Path, model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Everything but weights: configurations, and the code of a model that brings its own.

    Args:
        ends: token ids that end a response, for generation_config.json; none: what the model has.

    transformers rejects on saving what it accepts on loading: a generation_config with a temperature and without
    ``do_sample``, as Llama 2 and others come with. So that file is written here, with all that the start's has.
    """
    settings: GenerationConfig | None = getattr(model, "generation_config", None)
    if settings is None:
        with dropout_as_at_the_start(model):
            model.save_pretrained(folder, state_dict={}, save_original_format=False)
        return
    if ends:
        settings.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    model.generation_config = GenerationConfig()
    try:
        with dropout_as_at_the_start(model):
            model.save_pretrained(folder, state_dict={}, save_original_format=False)
    finally:
        model.generation_config = settings
    settings.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])
