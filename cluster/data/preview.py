"""What a person looks at before a run: rows as the model sees them, tokens at the seams, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.token_table import Row, TokenTable
from cluster.data.tokens import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEAM_TOKENS = 5
"""Tokens shown on each side of a seam."""
TEXT_CHARACTERS = 600
"""Most characters of a prompt or response that are shown: half from its beginning, half from its end."""
BINS, BAR_CHARACTERS = 10, 40
SEAM = "⟦prompt ends⟧"


def row_lines(number: int, row: Row, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """A row decoded, and its ids where it begins, where prompt and response meet, and where it ends."""
    responses = (
        {"response": row.response} if row.rejected is None else {"chosen": row.response} | {"rejected": row.rejected}
    )
    yield f"--- row {number}: {len(row.prompt)} prompt tokens, " + ", ".join(
        f"{len(ids)} {name} tokens" for name, ids in responses.items()
    )
    yield _shortened(_decoded(row.prompt, tokenizer)) + SEAM
    for name, ids in responses.items():
        yield f"[{name}] {_shortened(_decoded(ids, tokenizer))}"
    yield f"begins: {_named(row.prompt[:SEAM_TOKENS], tokenizer)}"
    for name, ids in responses.items():
        before, after = row.prompt[-SEAM_TOKENS:], ids[:SEAM_TOKENS]
        yield f"{name} seam: {_named(before, tokenizer)} | {_named(after, tokenizer)}"
        yield f"{name} ends: {_named(ids[-SEAM_TOKENS:], tokenizer)}"


def length_lines(table: TokenTable) -> Iterator[str]:
    """Quantiles and a histogram of the lengths in tokens."""
    columns = {"prompt": table.prompts.lengths, "response": table.responses.lengths}
    if table.rejected is not None:
        columns = {"prompt": columns["prompt"], "chosen": columns["response"], "rejected": table.rejected.lengths}
    for name, lengths in columns.items():
        yield from _histogram(name, lengths)


def _histogram(name: str, lengths: NDArray[np.int32]) -> Iterator[str]:
    low, median, high = np.quantile(lengths, (0.05, 0.5, 0.95))
    yield (
        f"{name} tokens: {int(lengths.sum(dtype=np.int64))} in all; shortest {lengths.min()}, 5 % {low:.0f}, "
        f"median {median:.0f}, 95 % {high:.0f}, longest {lengths.max()}"
    )
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, BINS + 1).astype(int))
    counts, edges = np.histogram(lengths, edges)
    for count, first, after in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(BAR_CHARACTERS * count / counts.max())
        yield f"  {first:>6} – {after - 1:<6} {count:>9} {bar}".rstrip()


def _decoded(ids: Ids, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids.tolist()))


def _named(ids: Ids, tokenizer: PreTrainedTokenizerBase) -> str:
    """Each id with its own text."""
    return " ".join(f"{i}:{tokenizer.decode([i])!r}" for i in ids.tolist())


def _shortened(text: str) -> str:
    half = TEXT_CHARACTERS // 2
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:half]} … {text[-half:]}"
