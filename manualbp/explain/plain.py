"""Plain arithmetic: Python's numbers, one sum after the other, to check the layers against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Row = list[float]
PlainLoss = Literal["half-squared-error", "mse", "cross-entropy", "bce"]


def sigmoid(v: float) -> float:
    """1 / (1 + e^-v)"""
    return 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))


def softplus(v: float) -> float:
    """log(1 + e^v)"""
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


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


def train_2_2_2(
    w: Row, b: Row, i: Row, t: Row, eta: float, updates: int, biases: str, order: str
) -> Row:
    """Return E and the two outputs of the worked 2-2-2 example after so many updates.

    The same as `worked.Example.course`, written out weight by weight as a student may write it.
    """
    w1, w2, w3, w4, w5, w6, w7, w8 = w
    b1, b2, b3, b4 = b  # of h1, h2, o1, o2
    (i1, i2), (t1, t2) = i, t
    while True:
        h1, h2 = sigmoid(w1 * i1 + w2 * i2 + b1), sigmoid(w3 * i1 + w4 * i2 + b2)
        o1, o2 = sigmoid(w5 * h1 + w6 * h2 + b3), sigmoid(w7 * h1 + w8 * h2 + b4)
        if updates == 0:
            return [((o1 - t1) ** 2 + (o2 - t2) ** 2) / 2, o1, o2]
        updates -= 1
        d1, d2 = (o1 - t1) * o1 * (1 - o1), (o2 - t2) * o2 * (1 - o2)  # ∂E/∂net of o1 and o2
        v5, v6, v7, v8 = w5, w6, w7, w8
        w5, w6, w7, w8 = (
            w5 - eta * d1 * h1,
            w6 - eta * d1 * h2,
            w7 - eta * d2 * h1,
            w8 - eta * d2 * h2,
        )
        if order == "updated":
            v5, v6, v7, v8 = w5, w6, w7, w8
        e1, e2 = (v5 * d1 + v7 * d2) * h1 * (1 - h1), (v6 * d1 + v8 * d2) * h2 * (1 - h2)
        w1, w2, w3, w4 = (
            w1 - eta * e1 * i1,
            w2 - eta * e1 * i2,
            w3 - eta * e2 * i1,
            w4 - eta * e2 * i2,
        )
        if biases == "own":
            b1, b2, b3, b4 = b1 - eta * e1, b2 - eta * e2, b3 - eta * d1, b4 - eta * d2
        elif biases == "shared":
            b1 = b2 = b1 - eta * (e1 + e2)
            b3 = b4 = b3 - eta * (d1 + d2)


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
