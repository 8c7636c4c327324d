"""Activation functions: y[j] = f(v[j]) for each number apart, and Softmax, which joins a row.

In all of them dx[j] = dy[j] f'(v[j]). Each class keeps whatever gives f' most cheaply: the output
where f' is a function of y (the next layer keeps y anyway), the input otherwise.

At a kink the derivative is a choice between the slopes on the two sides. It is a setting of the
layer, `slope_at_...`, whose default is torch's choice.

The lectures call the input of an activation v (Porr), f (Kandemir), a (IISc), net or ξ (Cazenave).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from manualbp.layers.base import (
    EVALUATION,
    Layer,
    Mode,
    SavedInput,
    SavedOutput,
    SavedSlope,
)
from manualbp.parameters import Views


@dataclass(frozen=True)
class Step(Layer[SavedInput]):
    """y = 1 if x ≥ 0 else 0;  dy/dx = 0 away from the jump, and 0 is what is used at it

    No gradient can train such a unit; the perceptron learning rule does without.
    Source: Cazenave, "step"; Krzywicki, threshold unit.
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return (x >= 0).to(x.dtype), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        return torch.zeros_like(dy)


@dataclass(frozen=True)
class Sign(Layer[SavedInput]):
    """y = 1 if x ≥ 0 else -1;  dy/dx = 0 away from the jump, and 0 is what is used at it

    At 0 the value is +1 as in the lecture, where torch.sign gives 0.
    Source: Krzywicki, "y = 1 if a ≥ 0 else -1".
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return 2 * (x >= 0).to(x.dtype) - 1, SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        return torch.zeros_like(dy)


@dataclass(frozen=True)
class PiecewiseLinear(Layer[SavedInput]):
    """y = min(max(x, 0), 1);  dy/dx = 1 for 0 < x < 1, 0 for x < 0 and x > 1

    Kinks: `slope_at_zero`, `slope_at_one`, both 1 as in torch.clamp.
    Source: Cazenave, "piecewise linear".
    """

    slope_at_zero: float = 1.0
    slope_at_one: float = 1.0

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return x.clamp(0, 1), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        x = saved.x
        # H(x) is 0, slope_at_zero, 1 left of, at and right of 0; so is H(1 - x) at the other kink
        dy_dx = heaviside(x, self.slope_at_zero) * heaviside(1 - x, self.slope_at_one)
        return dy * dy_dx


@dataclass(frozen=True)
class Sigmoid(Layer[SavedOutput]):
    """y = σ(x) = 1 / (1 + e^-x);  dy/dx = y (1 - y)

    Source: Cazenave, "sigmoid"; Krzywicki, dσ/dx = σ(x) (1 - σ(x)).
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedOutput]:
        y = x.sigmoid()
        return y, SavedOutput(y)

    def backward(
        self, params: Views, saved: SavedOutput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        y = saved.y
        # y (1 - y) in one operation: lerp(a, b, w) = a + w (b - a), here y + y (0 - y)
        dy_dx = torch.lerp(y, torch.zeros_like(y), y)
        return dy * dy_dx


@dataclass(frozen=True)
class Tanh(Layer[SavedOutput]):
    """y = tanh(x);  dy/dx = 1 - y²

    Source: Porr, end of section 7; IISc, "non-linearities".
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedOutput]:
        y = x.tanh()
        return y, SavedOutput(y)

    def backward(
        self, params: Views, saved: SavedOutput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        y = saved.y
        # 1 - y² = (1 - y) (1 + y), which loses no digits where y is close to ±1
        return dy * ((1 - y) * (1 + y))


@dataclass(frozen=True)
class TanhHalf(Layer[SavedOutput]):
    """y = tanh(x/2) = (1 - e^-x) / (1 + e^-x) = 2 σ(x) - 1;  dy/dx = ½ (1 - y²)

    Source: Cazenave, "tanh(ξ/2)".
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedOutput]:
        y = (x / 2).tanh()
        return y, SavedOutput(y)

    def backward(
        self, params: Views, saved: SavedOutput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        y = saved.y
        return dy * (0.5 * (1 - y) * (1 + y))  # as in Tanh


@dataclass(frozen=True)
class ReLU(Layer[SavedSlope]):
    """y = max(x, 0);  dy/dx = 1 for x > 0, 0 for x < 0

    Kink: `slope_at_zero`, 0 as in torch; Porr's eq. 23 suggests 1.
    Source: Porr, eq. 23; IISc, "ReLU".
    """

    slope_at_zero: float = 0.0

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedSlope]:
        y = x.clamp_min(0)
        # With slope 0 at the kink y tells all: the slope is 1 where y > 0. Another slope needs x.
        return y, SavedSlope(y if self.slope_at_zero == 0 else x)

    def backward(
        self, params: Views, saved: SavedSlope, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        if self.slope_at_zero == 0:
            # sign(y) is the slope as a number, because y is never negative. Comparing, y > 0, gives
            # a Boolean, and a product with a Boolean takes four times as long.
            return dy * saved.slope.sign()
        return dy * heaviside(saved.slope, self.slope_at_zero)


@dataclass(frozen=True)
class LeakyReLU(Layer[SavedInput]):
    """y = x for x > 0, a x for x < 0;  dy/dx = 1, a;  a = `negative_slope`

    Kink: `slope_at_zero`, None for a as in torch.
    Source: Kandemir, "leaky ReLU", max(0.1 x, x).
    """

    negative_slope: float = 0.01
    slope_at_zero: float | None = None

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return x.clamp_min(0) + self.negative_slope * x.clamp_max(0), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        left = self.negative_slope
        at_zero = left if self.slope_at_zero is None else self.slope_at_zero
        return dy * slope_with_kink(saved.x, left, at_zero, 1.0)


@dataclass(frozen=True)
class ELU(Layer[SavedInput]):
    """y = x for x > 0, α (e^x - 1) for x < 0;  dy/dx = 1, α e^x

    Kink, unless α = 1: `slope_at_zero`, None for α as in torch.
    Source: Clevert et al. 2016, eq. 15.
    """

    alpha: float = 1.0
    slope_at_zero: float | None = None

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        # One of the two terms is always 0. The bound on x keeps e^x from overflowing.
        return x.clamp_min(0) + self.alpha * x.clamp_max(0).expm1(), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        x = saved.x
        at_zero = self.alpha if self.slope_at_zero is None else self.slope_at_zero
        # The factor e^min(x,0) is 1 at and right of the kink, and so changes nothing there.
        return dy * (slope_with_kink(x, self.alpha, at_zero, 1.0) * x.clamp_max(0).exp())


@dataclass(frozen=True)
class GELU(Layer[SavedInput]):
    """y = x Φ(x);  dy/dx = Φ(x) + x φ(x)

    with the distribution Φ(x) = ½ (1 + erf(x/√2)) and the density φ(x) = e^(-x²/2) / √(2π) of
    N(0, 1).
    approximate="tanh":  y = ½ x (1 + t),  t = tanh(u),  u = √(2/π) (x + 0.044715 x³);
    dy/dx = ½ (1 + t) + ½ x (1 - t²) du/dx,  du/dx = √(2/π) (1 + 3 · 0.044715 x²).
    Source: Hendrycks & Gimpel 2016, section 2.
    """

    approximate: Literal["none", "tanh"] = "none"

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return x * self._gate(x), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        x = saved.x
        # y = x g(x), so dy/dx = g + x dg/dx; g is Φ or its approximation ½ (1 + tanh u)
        gate = self._gate(x)
        if self.approximate == "none":
            dgate_dx = (-0.5 * x * x).exp() / sqrt(2 * pi)
        else:
            du_dx = sqrt(2 / pi) * (1 + 3 * 0.044715 * (x * x))
            dgate_dx = 2 * gate * (1 - gate) * du_dx  # ½ (1 - t²) = 2 g (1 - g) for t = 2 g - 1
        return dy * (gate + x * dgate_dx)

    def _gate(self, x: Tensor) -> Tensor:
        """Return Φ(x) or its approximation; cheaper to compute twice than to keep."""
        if self.approximate == "none":
            return 0.5 * (1 + (x / sqrt(2)).erf())
        return 0.5 * (1 + (sqrt(2 / pi) * (x + 0.044715 * (x * x * x))).tanh())


@dataclass(frozen=True)
class SiLU(Layer[SavedInput]):
    """y = x σ(x);  dy/dx = σ(x) (1 + x (1 - σ(x)))

    Source: Elfwing et al. 2018, eqs. 2 and 3; also called swish.
    """

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        return x * x.sigmoid(), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        x, s = saved.x, saved.x.sigmoid()
        return dy * (s * (1 + x * (1 - s)))


@dataclass(frozen=True)
class Softplus(Layer[SavedInput]):
    """y = log(1 + e^(βx)) / β, and y = x where βx > `threshold`;  dy/dx = σ(βx), and 1

    Above the threshold the two differ by less than e^-threshold / β.
    Source: Dugas et al. 2001; β and threshold as in torch.nn.
    """

    beta: float = 1.0
    threshold: float = 20.0

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedInput]:
        z = self.beta * x
        # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|), in which no exponential can overflow
        smooth = (z.clamp_min(0) + (-z.abs()).exp().log1p()) / self.beta
        return torch.where(z > self.threshold, x, smooth), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        z = self.beta * saved.x
        return torch.where(z > self.threshold, dy, dy * z.sigmoid())


@dataclass(frozen=True)
class Softmax(Layer[SavedOutput]):
    """y[k] = e^x[k] / Σ_j e^x[j] along the axis `dim`;  ∂y[k]/∂x[j] = y[k] (δ_kj - y[j])

    Source: IISc, "softmax" (with the sum over j) and K-class logistic regression.
    """

    dim: int = -1

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedOutput]:
        # Taking the largest x away changes nothing, e^-m cancels, and no exponential can overflow.
        exps = (x - x.amax(self.dim, keepdim=True)).exp()
        y = exps / exps.sum(self.dim, keepdim=True)
        return y, SavedOutput(y)

    def backward(
        self, params: Views, saved: SavedOutput, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        y = saved.y
        # ∂E/∂x[j] = Σ_k dy[k] y[k] (δ_kj - y[j]) = y[j] (dy[j] - Σ_k dy[k] y[k])
        return y * (dy - (dy * y).sum(self.dim, keepdim=True))


def heaviside(x: Tensor, at_zero: float) -> Tensor:
    """Return 0, `at_zero`, 1 for x below, at, above 0."""
    return torch.heaviside(x, x.new_full((), at_zero))


def slope_with_kink(x: Tensor, left: float, at_zero: float, right: float) -> Tensor:
    """Return the slope of a function with one kink: `left`, `at_zero`, `right` for x <, =, > 0."""
    if at_zero == left:
        return left + (right - left) * heaviside(x, 0.0)
    return left + (right - left) * heaviside(x, (at_zero - left) / (right - left))
