"""Plain arithmetic: Python's numbers, one sum after the other, to check the layers against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from manualbp.models import ActivationName

Row = list[float]
PlainLoss = Literal["half-squared-error", "mse", "cross-entropy", "bce"]


class Scalar(NamedTuple):
    """An activation function as a schoolbook has it, for one number."""

    equation: str  # of v
    function: Callable[[float], float]
    kinks: tuple[float, ...] = ()


def sigmoid(v: float) -> float:
    """1 / (1 + e^-v)"""
    return 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))


def softplus(v: float) -> float:
    """log(1 + e^v)"""
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def _relu(v: float) -> float:
    return max(v, 0.0)


def _leaky_relu(v: float) -> float:
    return max(0.1 * v, v)


def _elu(v: float) -> float:
    return v if v > 0 else math.expm1(v)


def _gelu(v: float) -> float:
    return v / 2 * (1 + math.erf(v / math.sqrt(2)))


def _gelu_tanh(v: float) -> float:
    return v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def _silu(v: float) -> float:
    return v * sigmoid(v)


def _softplus_layer(v: float) -> float:
    return v if v > 20 else softplus(v)  # torch's threshold


def _tanh_half(v: float) -> float:
    return math.tanh(v / 2)


def _piecewise_linear(v: float) -> float:
    return min(max(v, 0.0), 1.0)


SCALARS: Mapping[ActivationName, Scalar] = {
    "relu": Scalar("max(v, 0)", _relu, (0.0,)),
    "leaky-relu": Scalar("max(0.1·v, v)", _leaky_relu, (0.0,)),
    "elu": Scalar("v if v > 0 else e^v - 1", _elu),
    "gelu": Scalar("v·Φ(v)", _gelu),
    "gelu-tanh": Scalar("½ v·(1 + tanh(√(2/π)·(v + 0.044715·v³)))", _gelu_tanh),
    "silu": Scalar("v / (1 + e^-v)", _silu),
    "softplus": Scalar("log(1 + e^v)", _softplus_layer),
    "sigmoid": Scalar("1 / (1 + e^-v)", sigmoid),
    "tanh": Scalar("tanh(v)", math.tanh),
    "tanh-half": Scalar("tanh(v/2)", _tanh_half),
    "piecewise-linear": Scalar("min(max(v, 0), 1)", _piecewise_linear, (0.0, 1.0)),
}
"""The activations of `manualbp.models`."""


def sums(h: Row, weight: list[Row], bias: Row) -> Row:
    """a[j] = Σ_i W[j,i] h[i] + b[j]"""
    return [
        sum(w * v for w, v in zip(row, h, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def softmax(a: Row) -> Row:
    """p[k] = e^a[k] / Σ_j e^a[j]"""
    exps = [math.exp(v - max(a)) for v in a]  # which leaves p as it is, and overflows nowhere
    return [e / sum(exps) for e in exps]


def error(loss: PlainLoss, y: Sequence[Row], t: Sequence[Row]) -> float:
    """Return E of outputs y and targets t, a row for each example.

    half-squared-error  ½ Σ (y - t)²             mse  Σ (y - t)² / M
    cross-entropy       -Σ t log p / N,  p = softmax(y)
    bce                 -Σ [t log p + (1-t) log(1-p)] / M,  p = σ(y)
    """
    pairs = [pair for y_n, t_n in zip(y, t, strict=True) for pair in zip(y_n, t_n, strict=True)]
    squares = sum((y_k - t_k) ** 2 for y_k, t_k in pairs)
    match loss:
        case "half-squared-error":
            return squares / 2
        case "mse":
            return squares / len(pairs)
        case "bce":  # -log σ(y) = log(1 + e^-y), -log(1 - σ(y)) = log(1 + e^y)
            terms = [t_k * softplus(-y_k) + (1 - t_k) * softplus(y_k) for y_k, t_k in pairs]
            return sum(terms) / len(pairs)
        case "cross-entropy":  # -log p[k] = log Σ_j e^y[j] - y[k]
            logs = [max(y_n) + math.log(sum(math.exp(v - max(y_n)) for v in y_n)) for y_n in y]
            rows = zip(logs, y, t, strict=True)
            return sum(
                t_k * (log_sum - y_k)
                for log_sum, y_n, t_n in rows
                for y_k, t_k in zip(y_n, t_n, strict=True)
            ) / len(logs)
