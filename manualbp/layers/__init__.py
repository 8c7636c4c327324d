"""Layers by hand, one family a file. Read base.py first, then linear.py and containers.py."""

from manualbp.layers.activations import (
    ELU,
    GELU,
    LeakyReLU,
    PiecewiseLinear,
    ReLU,
    Sigmoid,
    Sign,
    SiLU,
    Softmax,
    Softplus,
    Step,
    Tanh,
    TanhHalf,
)
from manualbp.layers.base import EVALUATION, AnyLayer, Layer, Mode
from manualbp.layers.containers import Residual, Sequential
from manualbp.layers.dropout import Dropout
from manualbp.layers.linear import Linear, Maxout

__all__ = [
    "ELU",
    "EVALUATION",
    "GELU",
    "AnyLayer",
    "Dropout",
    "Layer",
    "LeakyReLU",
    "Linear",
    "Maxout",
    "Mode",
    "PiecewiseLinear",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Step",
    "Tanh",
    "TanhHalf",
]
