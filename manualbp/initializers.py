"""How parameters begin: draws in place, each from an explicit generator.

`fan_in` and `fan_out` of a weight (O, I) are I and O: the numbers of terms in one output of the
forward pass, Σ_i W[o,i] x[i], and in one output of the backward pass, Σ_o dy[o] W[o,i].

Names and arithmetic are torch.nn.init's, so that the same generator state gives the same bits.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
from torch import Tensor

Initializer = Literal["torch", "xavier", "he", "small", "zeros"]
"""How a weight begins; the docstring of `initialize_weight` says what each is."""

SMALL = 0.01


def initialize_weight(
    weight: Tensor, initializer: Initializer, generator: torch.Generator | None = None
) -> None:
    """Fill a weight (..., O, I) in place.

    torch   W ~ U(-1/√I, 1/√I), the default of torch.nn.Linear.
    xavier  W ~ U(-a, a), a = √(6/(I+O)): keeps the variance of activations and of deltas about
            equal through tanh layers (Glorot & Bengio 2010, eq. 16).
    he      W ~ N(0, 2/I): the same for ReLU, which lets half of the variance through
            (He et al. 2015, eq. 10).
    small   W ~ N(0, 0.01²).
    zeros   W = 0: every unit of a layer then learns the same; shown, not recommended.
    """
    fan_out, fan_in = weight.shape[-2:]
    drawn = weight.new_empty(weight.shape)  # row by row, whatever the order in the flat tensor
    if initializer == "torch":
        # kaiming_uniform_(a=√5) in torch.nn; written as there, because 1/√I rounds differently.
        gain = sqrt(2.0 / (1 + sqrt(5) ** 2))
        bound = sqrt(3.0) * (gain / sqrt(max(fan_in, 1)))
        drawn.uniform_(-bound, bound, generator=generator)
    elif initializer == "xavier":
        std = sqrt(2.0 / float(fan_in + fan_out))
        bound = sqrt(3.0) * std
        drawn.uniform_(-bound, bound, generator=generator)
    elif initializer == "he":
        drawn.normal_(0.0, sqrt(2.0) / sqrt(fan_in), generator=generator)
    elif initializer == "small":
        drawn.normal_(0.0, SMALL, generator=generator)
    else:
        drawn.zero_()
    weight.copy_(drawn)


def initialize_bias(
    bias: Tensor, fan_in: int, initializer: Initializer, generator: torch.Generator | None = None
) -> None:
    """Fill a bias in place: b ~ U(-1/√I, 1/√I) as torch.nn.Linear's for "torch", else 0."""
    if initializer == "torch":
        bound = 1 / sqrt(fan_in) if fan_in > 0 else 0.0
        bias.uniform_(-bound, bound, generator=generator)
    else:
        bias.zero_()
