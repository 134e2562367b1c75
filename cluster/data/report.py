"""What became of a dataset's rows: counts by reason, each with the place of its first case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_REASONS = 50
"""Reasons that are counted apart; a template's own words may differ from row to row."""
OTHER = "for other reasons"


@dataclass
class DataReport:
    """Counts of rows: read, used, dropped by reason, and used with a remark."""

    source: str
    read: int = 0
    used: int = 0
    """Rows of the table; with ``data.turns: all`` a row that was read may give several."""
    held_out: int = 0
    """Rows that are evaluated and not trained on."""
    dropped: Counter[str] = field(default_factory=Counter)
    """[rows] by reason."""
    noted: Counter[str] = field(default_factory=Counter)
    """[rows] that are used, by what was changed, cut or ignored in them."""
    first: dict[str, str] = field(default_factory=dict)
    """Where the first row of each reason or remark is."""
    left_out: list[str] = field(default_factory=list)
    """Files of the folder that are not read, as they are of another split."""
    option: str = "data.path"
    """What names the dataset in the configuration."""

    def drop(self, reason: str, where: str) -> None:
        """Count a row that can't be used."""
        self._count(self.dropped, reason, where)

    def notes_of(self, where: str) -> Callable[[str], None]:
        """Takes remarks about one row, which is used but not as it stands; the same remark counts once."""
        made: set[str] = set()

        def note(remark: str) -> None:
            if remark not in made:
                made.add(remark)
                self._count(self.noted, remark, where)

        return note

    def lines(self) -> list[str]:
        """One line for the rows, one for each reason and remark, most frequent first."""
        held_out = f", {self.held_out} held out" if self.held_out else ""
        text = [f"{self.source}: {self.used} of {self.read} rows used{held_out}"]
        if self.left_out:
            text.append(f"not read: {', '.join(self.left_out)}")
        for label, counts in (("dropped", self.dropped), ("noted", self.noted)):
            text += [f"{label}: {count} {why} (first: {self.first[why]})" for why, count in counts.most_common()]
        return text

    def __str__(self) -> str:
        head, *rest = self.lines()
        return "; ".join([head, *rest])

    def _count(self, counts: Counter[str], why: str, where: str) -> None:
        why = " ".join(why.split())
        if why not in counts and len(counts) >= MOST_REASONS:
            why = OTHER
        counts[why] += 1
        self.first.setdefault(why, where)
