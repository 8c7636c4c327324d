"""Twins of Linear and Maxout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import manualbp.layers.linear as by_hand
from manualbp.initializers import SMALL, Initializer
from reference.cases import Case


def Linear(
    in_features: int, out_features: int, bias: bool = True, initializer: Initializer = "torch"
) -> nn.Module:
    """Return torch.nn.Linear, with the choice of how the weights begin."""
    module = nn.Linear(in_features, out_features, bias)
    initialize(module, initializer)
    return module


class Maxout(nn.Module):
    """The largest of `pieces` linear maps."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int = 2,
        bias: bool = True,
        ties: str = "split",
        initializer: Initializer = "torch",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.pieces = in_features, out_features, pieces
        self.weight = nn.Parameter(torch.empty(pieces, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(pieces, out_features)) if bias else None
        self.ties = ties
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        initialize(self, initializer)

    def forward(self, x: Tensor) -> Tensor:
        """Return max_p (W_p x + b_p)."""
        pieces = torch.einsum("...i,poi->...po", x, self.weight)
        if self.bias is not None:
            pieces = pieces + self.bias
        return pieces.amax(-2) if self.ties == "split" else pieces.max(-2).values


def initialize(module: nn.Module, initializer: Initializer) -> None:
    """Overwrite what the constructor drew, except for "torch"."""
    if initializer == "torch":
        return
    for name, parameter in module.named_parameters():
        pieces = parameter if parameter.ndim == 3 else [parameter]
        for piece in pieces:
            if name == "bias" or initializer == "zeros":
                nn.init.zeros_(piece)
            elif initializer == "xavier":
                nn.init.xavier_uniform_(piece)
            elif initializer == "he":
                nn.init.kaiming_normal_(piece)
            else:
                nn.init.normal_(piece, std=SMALL)


# Every other row is zero, where without bias all pieces tie.
_TIED = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -2.0, 0.5, 3.0, -1.0)

CASES = [
    Case("normal", by_hand.Linear(5, 3), (4, 5)),
    Case("without bias", by_hand.Linear(5, 3, bias=False), (4, 5)),
    Case("batch of one", by_hand.Linear(5, 3), (1, 5)),
    Case("no batch axis", by_hand.Linear(5, 3), (5,)),
    Case("two batch axes", by_hand.Linear(5, 3), (2, 3, 5)),
    Case("one by one", by_hand.Linear(1, 1), (7, 1)),
    Case("odd sizes", by_hand.Linear(17, 13), (31, 17)),
    Case("large values", by_hand.Linear(5, 3), (4, 5), scale=1e4),
    Case("normal", by_hand.Maxout(5, 3), (4, 5)),
    Case("three pieces", by_hand.Maxout(5, 3, pieces=3), (4, 5)),
    Case("one piece", by_hand.Maxout(5, 3, pieces=1), (4, 5)),
    Case("without bias", by_hand.Maxout(5, 3, bias=False), (4, 5)),
    Case("batch of one", by_hand.Maxout(5, 3), (1, 5)),
    Case("two batch axes", by_hand.Maxout(5, 3), (2, 3, 5)),
    Case(
        "ties split",
        by_hand.Maxout(5, 3, pieces=3, bias=False),
        (4, 5),
        values=_TIED,
        kinks=True,
    ),
    Case(
        "ties to the first",
        by_hand.Maxout(5, 3, pieces=3, bias=False, ties="first"),
        (4, 5),
        values=_TIED,
        kinks=True,
    ),
]
