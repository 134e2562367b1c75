"""What became of a dataset's rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class DataReport:
    """Counts of rows: read, used, truncated, and dropped by reason."""

    source: str
    read: int = 0
    used: int = 0
    truncated: int = 0
    """Rows that lost prompt or response tokens to a length limit and are used."""
    dropped: Counter[str] = field(default_factory=Counter)
    """[rows] by reason."""

    def __str__(self) -> str:
        text = f"{self.source}: {self.used} of {self.read} rows used"
        if self.truncated:
            text += f", {self.truncated} of them truncated"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return text + (f"; dropped: {reasons}" if reasons else "")
