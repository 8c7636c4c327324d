"""Twin of Dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import manualbp.layers.dropout as by_hand
from reference.cases import Case


class Dropout(nn.Module):
    """torch.nn.Dropout, but with the mask from a generator of its own; torch's cannot take one."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x with each number left out with probability p, the others divided by 1-p."""
        if not self.training or self.p == 0:
            return x
        drawn = torch.empty_like(x, dtype=torch.float32)
        kept = drawn.bernoulli_(1 - self.p, generator=self.generator).to(x.dtype)
        return x * kept / (1 - self.p) if self.p < 1 else x * kept


CASES = [
    Case("normal", by_hand.Dropout(), (40, 5)),
    Case("most left out", by_hand.Dropout(0.9), (40, 5)),
    Case("nothing left out", by_hand.Dropout(0.0), (4, 5)),
    Case("all left out", by_hand.Dropout(1.0), (4, 5), constant=True),
    Case("evaluation", by_hand.Dropout(), (4, 5), training=False),
    Case("three axes", by_hand.Dropout(0.2), (2, 3, 5)),
]
