"""From the names and shapes that weights have in a module of transformers to those of its checkpoints.

transformers 5 renames weights and stacks a layer's experts when it loads a checkpoint, and undoes both when it saves
one. Engines and other programs read checkpoints, so what leaves the learner goes through the same inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from contracts.errors import UserError

NamedTensors = list[tuple[str, Tensor]]


@torch.no_grad()
def to_checkpoint(model: PreTrainedModel, weights: Sequence[tuple[str, Tensor]]) -> NamedTensors:
    """``weights`` as ``save_pretrained`` would write them.

    Args:
        model: knows the conversions that its checkpoint was loaded with.
        weights: by their names in ``model``. All that make up a weight of the checkpoint must be among them: those of
            a layer do. On torch's meta device only names, dtypes and shapes are worked out.

    Returns:
        Weights that are as they were come first, in their order; those that were taken apart or put together follow.
    """
    converted = revert_weight_conversion(model, dict(weights))
    names = {id(tensor): name for name, tensor in converted.items()}
    kept = [(names[id(tensor)], tensor) for _, tensor in weights if id(tensor) in names]
    known = {name for name, _ in kept}
    return kept + [(name, tensor) for name, tensor in converted.items() if name not in known]


def validate_layerwise(model: PreTrainedModel, layers: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
    """Weights are converted layer by layer; that must give what converting them all at once would.

    Args:
        layers: all weights, by their names in ``model``, on torch's meta device.

    Raises:
        UserError: a weight of the checkpoint is made of several layers.
    """
    whole = to_checkpoint(model, [item for layer in layers for item in layer])
    found = {(name, tensor.shape) for layer in layers for name, tensor in to_checkpoint(model, layer)}
    if differing := sorted(found ^ {(name, tensor.shape) for name, tensor in whole}):
        raise UserError(
            f"model.path: {type(model).__name__} can't be published: {differing[0][0]} of its checkpoints is made of "
            "weights of several layers"
        )
