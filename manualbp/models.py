"""Named compositions of layers. A model is a layer: what holds for a layer holds for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from manualbp.initializers import Initializer
from manualbp.layers import (
    ELU,
    GELU,
    AnyLayer,
    Dropout,
    LeakyReLU,
    Linear,
    Maxout,
    PiecewiseLinear,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
    TanhHalf,
)

ModelName = Literal["mlp", "logistic", "maxout", "residual"]
ActivationName = Literal[
    "relu",
    "leaky-relu",
    "elu",
    "gelu",
    "gelu-tanh",
    "silu",
    "softplus",
    "sigmoid",
    "tanh",
    "tanh-half",
    "piecewise-linear",
]

ACTIVATIONS: Mapping[ActivationName, AnyLayer] = {
    "relu": ReLU(),
    "leaky-relu": LeakyReLU(0.1),
    "elu": ELU(),
    "gelu": GELU(),
    "gelu-tanh": GELU("tanh"),
    "silu": SiLU(),
    "softplus": Softplus(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "tanh-half": TanhHalf(),
    "piecewise-linear": PiecewiseLinear(),
}


def build(
    name: ModelName,
    features: int,
    outputs: int,
    *,
    hidden: Sequence[int] = (128, 64),
    activation: ActivationName = "relu",
    dropout: float = 0.0,
    initializer: Initializer = "torch",
) -> Sequential:
    """Return a model from `features` inputs to `outputs` linear outputs.

    logistic  one linear layer: logistic regression under a cross-entropy, least squares under a
              squared error.
    mlp       hidden layers of linear units with the activation, then a linear layer.
    maxout    hidden layers of Maxout units with two pieces, then a linear layer.
    residual  a linear layer to the first width, one block x + W₂ φ(W₁ x) for each width, then a
              linear layer.
    """
    phi = ACTIVATIONS[activation]
    layers: list[AnyLayer] = []
    width = features
    if name == "residual" and hidden:
        layers.append(Linear(width, hidden[0], initializer=initializer))
        width = hidden[0]
    for units in () if name == "logistic" else hidden:
        if name == "mlp":
            layers += [Linear(width, units, initializer=initializer), phi]
            width = units
        elif name == "maxout":
            layers.append(Maxout(width, units, initializer=initializer))
            width = units
        else:
            up = Linear(width, units, initializer=initializer)
            down = Linear(units, width, initializer=initializer)
            layers.append(Residual(Sequential(up, phi, down)))
        if dropout:
            layers.append(Dropout(dropout))
    return Sequential(*layers, Linear(width, outputs, initializer=initializer))
