"""Whether vLLM's model takes the weights that are published: which it passes over, and which of its own got none.

A model of vLLM's skips names that it does not know, or leaves a parameter as it was, without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import layerwise
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS

from contracts.errors import UserError, named

REFUSALS = (KeyError, ValueError, AttributeError, AssertionError, IndexError)
"""What a model's ``load_weights`` raises over a name or a shape that does not fit it."""


@dataclass
class Acceptance:
    """What became of one publication in one worker of an engine."""

    architecture: str = ""
    """vLLM's class of the model."""
    passed_over: list[str] = field(default_factory=list)
    """Published weights that the model did not load."""
    untouched: list[str] = field(default_factory=list)
    """Parameters of the model for which nothing was published."""
    refusal: str = ""
    """What the model raised."""
    adapters: bool = False
    """Adapters alone were published, not whole weights."""


def validate_accepted(workers: Sequence[Acceptance]) -> None:
    """Raises:
    UserError: an engine does not take all that is published, or keeps weights that are not.
    """
    name = f"weights: vLLM's {workers[0].architecture}"
    if workers[0].adapters:
        _validate_adapted(name, workers)
        return
    for worker in workers:
        if worker.refusal:
            raise UserError(f"{name} can't load what the learner publishes: {worker.refusal}")
    # A worker of a pipeline or of an expert group passes over what another one takes.
    common = set.intersection(*(set(worker.passed_over) for worker in workers))
    if passed_over := [weight for weight in workers[0].passed_over if weight in common]:
        raise UserError(
            f"{name} does not load {len(passed_over)} of the published weights, the first is {passed_over[0]}: it "
            "would go on generating with those it was started with"
        )
    for worker in workers:
        if worker.untouched:
            raise UserError(
                f"{name} has {len(worker.untouched)} weights that are not published, the first is {worker.untouched[0]}"
            )


def _validate_adapted(name: str, workers: Sequence[Acceptance]) -> None:
    remedy = "set weights.lora=merged to publish merged weights"
    for worker in workers:
        if worker.refusal:
            raise UserError(f"{name} can't apply the adapters: {worker.refusal}; {remedy}")
        if worker.passed_over:
            raise UserError(
                f"{name} applies no adapters to {len(worker.passed_over)} of the layers that have them, the first is "
                f"{worker.passed_over[0]}; {remedy}"
            )


class LoadWatch:
    """Loads weights into a model that vLLM's layerwise reload has begun on, and notes what becomes of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self.acceptance = Acceptance(type(model).__name__)
        self._asked: list[str] = []
        """Published weights that the model has asked for since it last loaded any."""
        self._loads = 0
        """Calls of loaders since then."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """May be called several times for one publication.

        Raises:
            Exception: whatever the model does; ``acceptance`` has it if it is a refusal.
        """
        # Every loader of a layerwise reload goes through this function.
        load_numel = layerwise.get_numel_loaded

        def counted(*arguments: Any) -> tuple[int, object]:
            self._loads += 1
            return load_numel(*arguments)

        layerwise.get_numel_loaded = counted
        try:
            self._model.load_weights(self._noted(weights))
        except REFUSALS as error:
            self.acceptance.refusal = named(error)
            raise
        finally:
            layerwise.get_numel_loaded = load_numel
        self._settle()

    def close(self) -> None:
        """Everything was loaded, and the reload is not finished yet."""
        self.acceptance.untouched = list(self._untouched())

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if self._loads:
                self._settle()
            # These go past the loaders that are counted.
            if name.rpartition(".")[2] not in SKIP_LOAD_TENSORS:
                self._asked.append(name)
            yield name, tensor

    def _settle(self) -> None:
        """A model loads each weight before it asks for the next, or asks for many and then loads them. Either way fewer
        loads than weights mean that some were passed over."""
        self.acceptance.passed_over += self._asked[: max(0, len(self._asked) - self._loads)]
        self._asked, self._loads = [], 0

    def _untouched(self) -> Iterator[str]:
        """Parameters of layers that nothing was loaded into, unless another layer has the same one (tied heads)."""
        waiting: dict[str, int] = {}
        loaded: set[int] = set()
        for name, layer in self._model.named_modules():
            info = layerwise.get_layerwise_info(layer)
            if info.kernel_tensors is None:  # all has come, and the layer has been given its parameters back
                loaded |= {id(tensor) for tensor in layer.parameters(recurse=False)}
                continue
            kept, _ = info.kernel_tensors
            if info.load_numel > 0:
                loaded |= {id(tensor) for tensor in kept.values()}
                continue
            # What a layer derives from its weights (latent attention) is not among those that are loaded.
            loadable, _ = info.restore_metadata
            own = (parameter for parameter in kept if parameter in loadable and parameter not in SKIP_LOAD_TENSORS)
            waiting |= {f"{name}.{parameter}".lstrip("."): id(kept[parameter]) for parameter in own}
        return (name for name, tensor in waiting.items() if tensor not in loaded)
