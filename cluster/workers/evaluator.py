"""The evaluation actor: scores one checkpoint after another, each on an engine of its own."""

from __future__ import annotations

from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.config.sections import DataConfig, EvaluationConfig
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.messages import Evaluation
from cluster.workers.ray_calls import Placement, Worker
from cluster.workers.resources import Hardware, evaluator_bundle


class Evaluator:
    """A Ray actor. The engine runs in a process below it, which ends with it: a model's memory is free afterwards."""

    def __init__(self, config: EvaluationConfig, data: DataConfig, seed: int) -> None:
        self._config, self._data, self._seed = config, data, seed

    def evaluate(self, model: str) -> Evaluation:
        """Score the model in a folder.

        Raises:
            UserError: model, prompts or check can't be used.
            RuntimeError: the engine's process failed otherwise.
        """
        config = self._config
        return evaluate(
            model,
            Path(config.prompts or ""),
            config.check or "",
            samples=config.samples,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=self._seed,
            data=self._data,
        )


class EvaluatorFactory:
    """Starts the evaluation actor of a run, and ends it."""

    def __init__(self, config: RunConfig, hardware: Hardware, label: str) -> None:
        """
        Args:
            label: with which its name on the cluster begins.
        """
        self._config, self._hardware, self._label = config, hardware, label
        self._started = 0
        self._placement: Placement | None = None
        self._worker: Worker | None = None

    def start(self) -> Worker:
        """Ask for one in place of the last one; its calls wait for the room. It takes what ranks and actors leave."""
        self.end()
        self._started += 1
        name = f"{self._label}-evaluator-{self._started}"
        self._placement = Placement.ask([evaluator_bundle(use_gpu=self._hardware.use_gpu)], "PACK", name)
        environment = self._hardware.environment(threads=1)
        config = self._config
        self._worker = self._placement.start(
            Evaluator, config.evaluation, config.data, config.seed, name=name, environment=environment
        )
        return self._worker

    def end(self) -> None:
        if self._worker:
            self._worker.kill()
        if self._placement:
            self._placement.remove()
        self._worker = self._placement = None
