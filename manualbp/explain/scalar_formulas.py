"""Activation functions and their slopes in plain Python, for any of their settings, and as text.

In a text {x} and {y} stand where names or numbers are put in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cosh, erf, exp, expm1, log, pi, sqrt, tanh
from typing import Any

from manualbp.explain.plain import sigmoid, softplus
from manualbp.layers import (
    ELU,
    GELU,
    AnyLayer,
    LeakyReLU,
    PiecewiseLinear,
    ReLU,
    Sigmoid,
    Sign,
    SiLU,
    Softplus,
    Step,
    Tanh,
    TanhHalf,
)

Vector = Sequence[float]
Matrix = Sequence[Vector]


@dataclass(frozen=True)
class Formula:
    """An activation function and its slope, as text and as functions of one number."""

    text: str
    slope_text: str
    value: Callable[[float], float]
    slope: Callable[[float], float]


def activation_formula(layer: AnyLayer) -> Formula | None:
    """Return the formula of an activation function, or None for any other layer."""
    made = _FORMULAS.get(type(layer))
    return made(layer) if made else None


def dot(a: Vector, b: Vector) -> float:
    """Return Σ_i a[i] b[i]."""
    return sum(v * w for v, w in zip(a, b, strict=True))


def cross_entropy(p: Matrix, t: Matrix) -> float:
    """Return -Σ_n Σ_k t[n,k] log p[n,k], without the terms in which t is 0."""
    pairs = zip((v for row in p for v in row), (v for row in t for v in row), strict=True)
    return -sum(b * log(a) for a, b in pairs if b)


def _leaky(layer: LeakyReLU) -> Formula:
    a = layer.negative_slope
    return Formula(
        f"{{x}} if {{x}} > 0 else {a:g} · {{x}}",
        f"1 if {{x}} > 0 else {a:g}",
        lambda x: x if x > 0 else a * x,
        lambda x: 1.0 if x > 0 else a,
    )


def _elu(layer: ELU) -> Formula:
    a = layer.alpha
    return Formula(
        f"{{x}} if {{x}} > 0 else {a:g} · (e^{{x}} - 1)",
        f"1 if {{x}} > 0 else {a:g} · e^{{x}}",
        lambda x: x if x > 0 else a * expm1(x),
        lambda x: 1.0 if x > 0 else a * exp(x),
    )


def _gelu(layer: GELU) -> Formula:
    if layer.approximate == "none":
        return Formula(
            "{x} · ½ (1 + erf({x} / √2))",
            "½ (1 + erf({x} / √2)) + {x} e^(-{x}²/2) / √(2π)",
            lambda x: x * (1 + erf(x / sqrt(2))) / 2,
            lambda x: (1 + erf(x / sqrt(2))) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi),
        )
    c, d = sqrt(2 / pi), 0.044715
    return Formula(
        "½ {x} (1 + t),  t = tanh(√(2/π) ({x} + 0.044715 {x}³))",
        "½ (1 + t) + ½ {x} (1 - t²) √(2/π) (1 + 3 · 0.044715 {x}²)",
        lambda x: x * (1 + tanh(c * (x + d * x**3))) / 2,
        lambda x: (
            (1 + tanh(c * (x + d * x**3))) / 2
            + x * (1 - tanh(c * (x + d * x**3)) ** 2) * c * (1 + 3 * d * x * x) / 2
        ),
    )


def _softplus(layer: Softplus) -> Formula:
    b = layer.beta
    return Formula(
        "log(1 + e^{x})" if b == 1 else f"log(1 + e^({b:g} {{x}})) / {b:g}",
        "1 / (1 + e^(-{x}))" if b == 1 else f"1 / (1 + e^(-{b:g} {{x}}))",
        lambda x: x if b * x > layer.threshold else softplus(b * x) / b,
        lambda x: 1.0 if b * x > layer.threshold else sigmoid(b * x),
    )


_FORMULAS: Mapping[type[AnyLayer], Callable[[Any], Formula]] = {
    Step: lambda _: Formula(
        "1 if {x} ≥ 0 else 0", "0", lambda x: 1.0 if x >= 0 else 0.0, lambda x: 0.0
    ),
    Sign: lambda _: Formula(
        "1 if {x} ≥ 0 else -1", "0", lambda x: 1.0 if x >= 0 else -1.0, lambda x: 0.0
    ),
    PiecewiseLinear: lambda _: Formula(
        "min(max({x}, 0), 1)",
        "1 if 0 < {x} < 1 else 0",
        lambda x: min(max(x, 0.0), 1.0),
        lambda x: 1.0 if 0 < x < 1 else 0.0,
    ),
    Sigmoid: lambda _: Formula(
        "1 / (1 + e^(-{x}))", "{y} (1 - {y})", sigmoid, lambda x: exp(-x) / (1 + exp(-x)) ** 2
    ),
    Tanh: lambda _: Formula(
        "(e^{x} - e^(-{x})) / (e^{x} + e^(-{x}))",
        "1 - {y}²",
        tanh,
        lambda x: 1 / cosh(x) ** 2,
    ),
    TanhHalf: lambda _: Formula(
        "(1 - e^(-{x})) / (1 + e^(-{x}))",
        "½ (1 - {y}²)",
        lambda x: tanh(x / 2),
        lambda x: 1 / (2 * cosh(x / 2) ** 2),
    ),
    ReLU: lambda _: Formula(
        "max({x}, 0)",
        "1 if {x} > 0 else 0",
        lambda x: max(x, 0.0),
        lambda x: 1.0 if x > 0 else 0.0,
    ),
    LeakyReLU: _leaky,
    ELU: _elu,
    GELU: _gelu,
    SiLU: lambda _: Formula(
        "{x} σ({x})",
        "σ({x}) (1 + {x} (1 - σ({x})))",
        lambda x: x * sigmoid(x),
        lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    ),
    Softplus: _softplus,
}
