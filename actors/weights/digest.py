"""A digest of a weight on the device where it is: nothing comes back from a GPU but one number."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Words read at a time: their products, 8 bytes each, are all that is held beside the weight."""


def digest(weight: Tensor) -> Tensor:
    """int64 [] on the weight's device: its words, each times an odd number of its place, added up modulo 2**64.

    An odd factor can be divided by, so no change of a single word goes unseen.
    """
    words = weight.detach().contiguous().view(-1)
    words = words.view(torch.int16 if words.element_size() % 2 == 0 else torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    for first in range(0, len(words), CHUNK):
        part = words[first : first + CHUNK]
        factors = torch.arange(2 * first + 1, 2 * (first + len(part)), 2, dtype=torch.int64, device=weight.device)
        total += factors.mul_(part).sum()
    return total
