"""The source of a method without actors."""

from __future__ import annotations

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from cluster.sources.dataset import DatasetSource, SupervisedSource
from cluster.sources.replay import ReplaySource
from contracts.pair import PreferencePair


def fixed_source(
    config: RunConfig, table: TokenTable, batches: list[list[PreferencePair]]
) -> DatasetSource | ReplaySource:
    """
    Args:
        table: the rows of methods ``sft`` and ``offline``.
        batches: the recording of method ``replay``.
    """
    if config.method == "replay":
        return ReplaySource(batches)
    kind = SupervisedSource if config.method == "sft" else DatasetSource
    return kind(table, seed=config.seed, batch_size=config.learner.batch_size)
