"""Twins of the activation functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualbp.layers.activations as by_hand
from manualbp.layers import AnyLayer
from reference.cases import Case


class Step(nn.Module):
    """1 where x ≥ 0, else 0. The product with 0 gives autograd something to differentiate."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the step."""
        return torch.where(x >= 0, 1.0, 0.0).to(x.dtype) + 0 * x


class Sign(nn.Module):
    """1 where x ≥ 0, else -1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sign, +1 at 0."""
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype) + 0 * x


class PiecewiseLinear(nn.Module):
    """torch.clamp to [0, 1]."""

    def __init__(self, slope_at_zero: float = 1.0, slope_at_one: float = 1.0) -> None:
        super().__init__()
        self.slope_at_zero = slope_at_zero
        self.slope_at_one = slope_at_one

    def forward(self, x: Tensor) -> Tensor:
        """Return x, bounded."""
        y = with_slope_at(0, self.slope_at_zero, x, torch.clamp(x, 0, 1))
        return with_slope_at(1, self.slope_at_one, x, y)


Sigmoid = nn.Sigmoid
Tanh = nn.Tanh
SiLU = nn.SiLU
GELU = nn.GELU
Softplus = nn.Softplus
Softmax = nn.Softmax


class TanhHalf(nn.Module):
    """tanh(x/2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x/2)."""
        return torch.tanh(x / 2)


class ReLU(nn.Module):
    """torch.relu."""

    def __init__(self, slope_at_zero: float = 0.0) -> None:
        super().__init__()
        self.slope_at_zero = slope_at_zero

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        y = torch.relu(x)
        return y if self.slope_at_zero == 0 else with_slope_at(0, self.slope_at_zero, x, y)


class LeakyReLU(nn.Module):
    """torch.nn.functional.leaky_relu."""

    def __init__(self, negative_slope: float = 0.01, slope_at_zero: float | None = None) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.slope_at_zero = slope_at_zero

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or a x left of 0."""
        y = F.leaky_relu(x, self.negative_slope)
        return y if self.slope_at_zero is None else with_slope_at(0, self.slope_at_zero, x, y)


class ELU(nn.Module):
    """torch.nn.functional.elu."""

    def __init__(self, alpha: float = 1.0, slope_at_zero: float | None = None) -> None:
        super().__init__()
        self.alpha = alpha
        self.slope_at_zero = slope_at_zero

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or α (e^x - 1) left of 0."""
        y = F.elu(x, self.alpha)
        return y if self.slope_at_zero is None else with_slope_at(0, self.slope_at_zero, x, y)


def with_slope_at(point: float, slope: float, x: Tensor, y: Tensor) -> Tensor:
    """Return y with autograd's derivative at x = `point` replaced; y there must be `point`."""
    return torch.where(x == point, point + slope * (x - point), y)


_NEAR_ZERO = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0)  # the lectures' grid; has all the kinks


def _cases(layer: AnyLayer, **common: Any) -> list[Case]:
    return [
        Case("normal", layer, (4, 5), scale=2, **common),
        Case("no axes", layer, (), values=(0.7,), **common),
        Case("three axes", layer, (2, 3, 5), **common),
        Case("extreme values", layer, (4,), values=(-1000.0, -30.0, 30.0, 1000.0), **common),
    ]


def _kink(name: str, layer: AnyLayer, **common: Any) -> Case:
    return Case(name, layer, (8,), values=_NEAR_ZERO, kinks=True, **common)


CASES = [
    *_cases(by_hand.Step(), constant=True),
    _kink("at the jump", by_hand.Step(), constant=True),
    *_cases(by_hand.Sign(), constant=True),
    _kink("at the jump", by_hand.Sign(), constant=True),
    *_cases(by_hand.PiecewiseLinear()),
    _kink("kinks as torch's", by_hand.PiecewiseLinear()),
    _kink("open kinks", by_hand.PiecewiseLinear(0.0, 0.0)),
    _kink("kinks 0.25, 0.5", by_hand.PiecewiseLinear(0.25, 0.5)),
    *_cases(by_hand.Sigmoid()),
    *_cases(by_hand.Tanh()),
    *_cases(by_hand.TanhHalf()),
    *_cases(by_hand.ReLU()),
    _kink("kink as torch's", by_hand.ReLU()),
    _kink("slope 1 at the kink", by_hand.ReLU(1.0)),
    _kink("slope ½ at the kink", by_hand.ReLU(0.5)),
    *_cases(by_hand.LeakyReLU()),
    _kink("kink as torch's", by_hand.LeakyReLU(0.1)),
    _kink("slope 1 at the kink", by_hand.LeakyReLU(0.1, 1.0)),
    _kink("slope ½ at the kink", by_hand.LeakyReLU(0.1, 0.5)),
    *_cases(by_hand.ELU()),
    _kink("kink as torch's", by_hand.ELU(0.5)),
    _kink("slope 1 at the kink", by_hand.ELU(0.5, 1.0)),
    *_cases(by_hand.GELU()),
    *_cases(by_hand.GELU("tanh")),
    *_cases(by_hand.SiLU()),
    *_cases(by_hand.Softplus()),
    *_cases(by_hand.Softplus(beta=2.0, threshold=5.0)),
    Case("normal", by_hand.Softmax(), (4, 5)),
    Case("first axis", by_hand.Softmax(0), (4, 5)),
    Case("batch of one", by_hand.Softmax(), (1, 5)),
    Case("one axis", by_hand.Softmax(), (5,)),
    Case("three axes", by_hand.Softmax(1), (2, 3, 5)),
    Case("large values", by_hand.Softmax(), (4, 5), scale=1000),
]
