"""Who works on which plan index, and which indices are accounted for: each exactly once."""

from __future__ import annotations

from heapq import heappop, heappush


class Ledger:
    """Leases of plan indices 0, 1, 2, …

    Invariants: an index is returned to the pool, leased to one actor, or accounted for; ``mark`` is the lowest index
    that is not accounted for; an index is accounted for once, a second report is refused.
    """

    def __init__(self, mark: int = 0) -> None:
        self.mark = mark
        self.next = mark
        self._returned: list[int] = []
        self._leases: dict[str, set[int]] = {}
        self._done: set[int] = set()

    @property
    def leased(self) -> int:
        return sum(map(len, self._leases.values()))

    @property
    def accounted(self) -> int:
        """Indices accounted for."""
        return self.mark + len(self._done)

    def lease(self, actor: str, count: int, admitted: int) -> list[int]:
        """Up to ``count`` indices below ``admitted``: returned ones first, then new ones."""
        indices = []
        while len(indices) < count:
            if self._returned and self._returned[0] < admitted:
                indices.append(heappop(self._returned))
            elif self.next < admitted:
                indices.append(self.next)
                self.next += 1
            else:
                break
        if indices:
            self._leases.setdefault(actor, set()).update(indices)
        return indices

    def account(self, index: int) -> bool:
        """Take note of an index's outcome; False if it was accounted for before."""
        if index < self.mark or index in self._done:
            return False
        for held in self._leases.values():
            held.discard(index)
        # A report may come from an actor that was given up and whose index went back to the pool.
        if index in self._returned:
            self._returned = sorted(i for i in self._returned if i != index)
        self._done.add(index)
        while self.mark in self._done:
            self._done.remove(self.mark)
            self.mark += 1
        return True

    def release(self, actor: str) -> list[int]:
        """Return what ``actor`` holds to the pool."""
        indices = sorted(self._leases.pop(actor, ()))
        for index in indices:
            heappush(self._returned, index)
        return indices

    def state(self) -> dict:
        """What a restored ledger needs; leases are not kept, their holders are gone."""
        return {"mark": self.mark, "done": sorted(self._done)}

    @classmethod
    def restored(cls, state: dict) -> Ledger:
        ledger = cls(state["mark"])
        ledger._done = set(state["done"])
        ledger.next = max(ledger._done, default=ledger.mark - 1) + 1
        ledger._returned = [i for i in range(ledger.mark, ledger.next) if i not in ledger._done]
        return ledger
