"""What a run learns from, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

from transformers import PreTrainedTokenizerBase

from actors.token_table import TokenTable
from cluster.config.run_config import RunConfig
from cluster.data.ends import EndTokens, read_ends
from cluster.data.loading import load_held_out, load_tables
from cluster.data.tokenizer import load_tokenizer, opening_note
from cluster.run.fingerprint import fingerprint
from cluster.storage.recording import read_batches
from contracts.errors import UserError
from contracts.pair import PreferencePair


@dataclass(frozen=True)
class Inputs:
    """Rows, or the batches of a recording (method ``replay``)."""

    tokenizer: PreTrainedTokenizerBase
    ends: EndTokens
    report: tuple[str, ...]
    """What became of the rows, in lines."""
    table: TokenTable
    held_out: TokenTable | None = None
    """Rows that are evaluated and not trained on."""
    batches: list[list[PreferencePair]] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """Tells this data from other data."""
        return fingerprint(self.table, self.batches)


def read_inputs(config: RunConfig) -> Inputs:
    """Raises:
    UserError: data or tokenizer can't be used.
    """
    tokenizer = load_tokenizer(config.model, config.data.chat_template, config.data.bos)
    ends = read_ends(config.model, tokenizer)
    if config.method == "replay":
        assert config.data.path is not None, "a rule of RunConfig"
        batches = read_batches(config.data.path)
        report = f"{config.data.path}: {len(batches)} recorded batches, {sum(map(len, batches))} pairs"
        held_out, lines = load_held_out(config.data, config.method, tokenizer, ends)
        return Inputs(tokenizer, ends, (report, *lines), TokenTable.empty(), held_out, batches)
    tables = load_tables(config.data, config.method, tokenizer, ends)
    said = (line for report in tables.reports for line in report.lines())
    return Inputs(tokenizer, ends, (*said, opening_note(tokenizer)), tables.train, tables.held_out)


def count_steps(config: RunConfig, inputs: Inputs) -> int:
    """Optimizer steps of the run: given, or ``epochs`` passes over the data, or all that was recorded.

    Raises:
        UserError: more than was recorded.
    """
    steps, recorded, rows = config.learner.steps, len(inputs.batches), len(inputs.table)
    if config.method == "replay":
        if steps and steps > recorded:
            raise UserError(f"learner.steps {steps}: {config.data.path} holds {recorded} batches; at most that")
        return recorded if steps is None else steps
    return steps_over(config, rows)


def steps_over(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run on so many usable rows: given, or ``epochs`` passes over them."""
    if config.learner.steps is not None:
        return config.learner.steps
    if config.method == "sapo":
        return ceil(config.learner.epochs * rows * config.generation.responses_per_prompt / config.inserts_per_step)
    return ceil(config.learner.epochs * rows / config.learner.batch_size)
