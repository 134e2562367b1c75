"""Responses out of a file in place of a model, for lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from cluster.evaluation.alpaca_eval import read_generations
from contracts.errors import UserError


class StoredResponses(LM):
    """Answers a prompt with the output that the file has for it as instruction."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: as AlpacaEval has them.

        Raises:
            UserError: the file can't be used.
        """
        super().__init__()
        self._path = path
        self._outputs = {row.instruction.strip(): row.output for row in read_generations(path)}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """
        Raises:
            UserError: a prompt has no response in the file.
        """
        found = []
        for request in requests:
            prompt = str(request.args[0]).strip()
            if prompt not in self._outputs:
                raise UserError(
                    f"generations {self._path}: no response to {prompt[:80]!r}, which {request.task_name} asks"
                )
            found.append(self._outputs[prompt])
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"--tasks {requests[0].task_name}: compares likelihoods, and a file of responses has none")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"--tasks {requests[0].task_name}: measures likelihoods, and a file of responses has none")
