"""Who works on which plan index, and which indices are accounted for: each exactly once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LedgerState:
    """What a restored ledger needs; leases are not kept, their holders are gone."""

    mark: int
    done: list[int]
    """Indices accounted for above the mark, ascending."""


class LeaseLedger:
    """Leases of plan indices 0, 1, 2, …

    Invariants: an index below ``next`` is returned to the pool, leased to one actor, or accounted for; ``mark`` is the
    lowest index that is not accounted for; an index is accounted for once, a second report is rejected.
    """

    def __init__(self, mark: int = 0) -> None:
        self.mark = mark
        self.next = mark
        """Lowest index that was never leased."""
        self._returned: set[int] = set()
        self._holders: dict[int, str] = {}
        self._done: set[int] = set()
        """Accounted for, above the mark."""

    @property
    def leased(self) -> int:
        return len(self._holders)

    @property
    def accounted(self) -> int:
        """Indices accounted for."""
        return self.mark + len(self._done)

    def free(self, admitted: int) -> int:
        """How many indices below ``admitted`` can be leased."""
        return max(0, admitted - self.next) + sum(index < admitted for index in self._returned)

    def lease(self, actor: str, count: int, admitted: int) -> list[int]:
        """Up to ``count`` indices below ``admitted``: returned ones first, then new ones, each in ascending order."""
        indices = sorted(index for index in self._returned if index < admitted)[:count]
        self._returned.difference_update(indices)
        fresh = max(0, min(count - len(indices), admitted - self.next))
        indices += range(self.next, self.next + fresh)
        self.next += fresh
        self._holders.update(dict.fromkeys(indices, actor))
        return indices

    def account(self, actor: str, index: int) -> bool:
        """Take note of an index that ``actor`` reports; False if it was accounted for before.

        Raises:
            ValueError: the index was never leased.
        """
        if index >= self.next:
            raise ValueError(f"{actor} reports plan index {index}, which was never leased: leases end at {self.next}")
        if index < self.mark or index in self._done:
            return False
        # A report may come from an actor that was given up and whose index went back to the pool, or on to another.
        self._holders.pop(index, None)
        self._returned.discard(index)
        self._done.add(index)
        while self.mark in self._done:
            self._done.remove(self.mark)
            self.mark += 1
        return True

    def release(self, actor: str) -> list[int]:
        """Return what ``actor`` holds to the pool."""
        indices = sorted(index for index, holder in self._holders.items() if holder == actor)
        for index in indices:
            del self._holders[index]
        self._returned.update(indices)
        return indices

    def state(self) -> LedgerState:
        return LedgerState(self.mark, sorted(self._done))

    @classmethod
    def restored(cls, state: LedgerState) -> LeaseLedger:
        ledger = cls(state.mark)
        ledger._done = set(state.done)
        ledger.next = max(ledger._done, default=ledger.mark - 1) + 1
        ledger._returned = set(range(ledger.mark, ledger.next)) - ledger._done
        return ledger
