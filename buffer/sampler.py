"""Draws slots in proportion to their weights, each draw and each change in O(log n)."""

from __future__ import annotations

from array import array


class SumTree:
    """Weights of ``capacity`` slots with their partial sums in a binary tree.

    Invariant: every inner node is the sum of its two children, recomputed (never adjusted) on each
    change, so that rounding does not pile up.
    """

    def __init__(self, capacity: int) -> None:
        self.leaves = 1 << max(0, (capacity - 1).bit_length())
        self._nodes = array("d", bytes(16 * self.leaves))

    @property
    def total(self) -> float:
        return self._nodes[1]

    def __getitem__(self, slot: int) -> float:
        return self._nodes[self.leaves + slot]

    def __setitem__(self, slot: int, weight: float) -> None:
        nodes = self._nodes
        node = self.leaves + slot
        nodes[node] = weight
        while node > 1:
            node >>= 1
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]

    def find(self, mass: float) -> int:
        """The slot at which the running sum of weights first exceeds ``mass``, 0 <= mass < total."""
        nodes = self._nodes
        node = 1
        while node < self.leaves:
            node *= 2
            left = nodes[node]
            # An empty right half is never entered, whatever rounding says.
            if mass >= left and nodes[node + 1] > 0.0:
                mass -= left
                node += 1
        return node - self.leaves
