"""Draws slots in proportion to their weights, each draw and each change in O(log n)."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Weights = NDArray[np.float64]


class SumTree:
    """Weights of ``capacity`` slots with their partial sums in a binary tree.

    Invariant: every inner node is the sum of its two children, recomputed (never adjusted) on each
    change, so that rounding does not pile up and the tree is a function of its weights alone.
    """

    def __init__(self, capacity: int) -> None:
        self.leaves = 1 << max(0, (capacity - 1).bit_length())
        # One memory, two views: single elements are several times faster in an array, batches in NumPy.
        self._node = array("d", bytes(16 * self.leaves))
        self._nodes: Weights = np.frombuffer(self._node, np.float64)

    @property
    def total(self) -> float:
        return self._node[1]

    def __getitem__(self, slot: int) -> float:
        return self._node[self.leaves + slot]

    def __setitem__(self, slot: int, weight: float) -> None:
        node = self._node
        i = self.leaves + slot
        node[i] = weight
        while i > 1:
            i >>= 1
            node[i] = node[2 * i] + node[2 * i + 1]

    def put(self, slots: Slots, weights: Weights) -> None:
        """Set many: slots int64 [n], all different, weights float64 [n]."""
        nodes = self._nodes
        i = slots + self.leaves
        nodes[i] = weights
        for _ in range(self.leaves.bit_length() - 1):
            i >>= 1
            nodes[i] = nodes[2 * i] + nodes[2 * i + 1]

    def find(self, masses: Weights) -> Slots:
        """For each mass, 0 <= mass < total, the slot at which the running sum of weights first exceeds it: [n]."""
        nodes = self._nodes
        i = np.ones(len(masses), np.int64)
        for _ in range(self.leaves.bit_length() - 1):
            i *= 2
            left = nodes[i]
            # An empty right half is never entered, whatever rounding says.
            right = (masses >= left) & (nodes[i + 1] > 0.0)
            masses = np.where(right, masses - left, masses)
            i += right
        return i - self.leaves

    def below(self, slot: int) -> float:
        """Sum of the weights of slots lower than ``slot``, 0 <= slot < capacity."""
        node, i, mass = self._node, self.leaves + slot, 0.0
        while i > 1:
            if i % 2:
                mass += node[i - 1]
            i >>= 1
        return mass
