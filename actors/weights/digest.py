"""A digest of a weight on the device where it is: nothing comes back from a GPU but one number."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Words read at a time: their products take 8 bytes each."""


def digest(weight: Tensor) -> Tensor:
    """int64 [] on the weight's device: its words, each times an odd number of its place, added up modulo 2**64.

    An odd factor can be divided by, so no change of a single word goes unseen.
    """
    words = weight.detach().contiguous().view(-1)
    words = words.view(torch.int16 if words.element_size() % 2 == 0 else torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    for first in range(0, len(words), CHUNK):
        part = words[first : first + CHUNK].to(torch.int64)
        total += (part * (2 * torch.arange(first, first + len(part), device=weight.device) + 1)).sum()
    return total
