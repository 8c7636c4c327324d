"""Twins of Sequential and Residual."""

from __future__ import annotations

from torch import Tensor, nn

import manualbp.layers as by_hand
from reference.cases import Case


class Sequential(nn.Sequential):
    """torch.nn.Sequential, from a tuple of layers."""

    def __init__(self, layers: tuple[nn.Module, ...]) -> None:
        super().__init__(*layers)


class Residual(nn.Module):
    """x plus what the inner layer makes of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        return x + self.inner(x)


_block = by_hand.Sequential(by_hand.Linear(5, 8), by_hand.Tanh(), by_hand.Linear(8, 5))

CASES = [
    Case(
        "two layers",
        by_hand.Sequential(by_hand.Linear(5, 7), by_hand.ReLU(), by_hand.Linear(7, 3)),
        (4, 5),
    ),
    Case("empty", by_hand.Sequential(), (4, 5)),
    Case(
        "nested, with dropout",
        by_hand.Sequential(
            by_hand.Sequential(by_hand.Linear(5, 5), by_hand.Sigmoid(), by_hand.Dropout(0.3)),
            by_hand.Residual(_block),
            by_hand.Maxout(5, 4),
            by_hand.Softmax(),
        ),
        (6, 5),
    ),
    Case(
        "twenty layers",
        by_hand.Sequential(
            *(layer for _ in range(10) for layer in (by_hand.Linear(4, 4), by_hand.Tanh()))
        ),
        (3, 4),
    ),
    Case("block", by_hand.Residual(_block), (4, 5)),
    Case("of one layer", by_hand.Residual(by_hand.ELU(0.5)), (2, 3, 5)),
    Case("of a residual", by_hand.Residual(by_hand.Residual(by_hand.Linear(5, 5))), (1, 5)),
]
