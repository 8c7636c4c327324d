"""The small networks that the lectures train: 2-2-1 on XOR, 2-2-2, one neuron, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from manualbp.explain.networks import Network, float64
from manualbp.layers import Linear, Sequential, Sigmoid
from manualbp.lectures import setting
from manualbp.losses import AnyLoss, HalfSquaredError
from manualbp.models import build
from manualbp.optimizers import Optimizer
from manualbp.parameters import Parameters
from manualbp.training.descent import Descent

FIXED_BIASES = ("0.bias", "2.bias")
"""What the 2-2-2 example leaves as it is."""


def sigmoid_network(widths: Sequence[int], numbers: Sequence[float]) -> Network:
    """Return a network of sigmoid units.

    `numbers` are, for each layer, the weights row by row, a row for each receiving unit, and then
    the biases.
    """
    layers = [Linear(i, o) for i, o in pairwise(widths)]
    return filled(Sequential(*(part for layer in layers for part in (layer, Sigmoid()))), numbers)


def linear_neuron(weights: Sequence[float], loss: AnyLoss | None = None) -> Network:
    """Return y = Σ_i w_i x_i."""
    model = Sequential(Linear(len(weights), 1, bias=False))
    return filled(model, weights, loss)


def filled(model: Sequential, numbers: Sequence[float], loss: AnyLoss | None = None) -> Network:
    """Return a model with these parameters, in the order in which it lists them."""
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    named = params.named()
    pieces = torch.split(float64(numbers), [w.numel() for w in named.values()])
    for w, piece in zip(named.values(), pieces, strict=True):
        w.copy_(piece.view(w.shape))
    return Network(model, params, loss or HalfSquaredError())


def numbers(params: Parameters) -> Tensor:
    """Return all parameters, or gradients, in a row: the other way round of `filled`."""
    return torch.cat([w.flatten() for w in params.named().values()])


def linear_model(w: Tensor, loss: AnyLoss) -> Network:
    """Return the model "logistic" with the rows w (K, M), one for each output, first the bias.

    The layer's bias is the weight of φ_0 = 1, so that a_nk = Σ_i w_ki φ_ni with φ_n = (1, x_n), the
    way the lectures write logistic regression and least squares.
    """
    model = build("logistic", w.shape[1] - 1, w.shape[0])
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    params.named()["0.bias"].copy_(w[:, 0])
    params.named()["0.weight"].copy_(w[:, 1:])
    return Network(model, params, loss)


def rows(params: Parameters) -> Tensor:
    """Return the rows (K, M) of a `linear_model`, or of its gradient."""
    named = params.named()
    return torch.cat([named["0.bias"].unsqueeze(1), named["0.weight"]], 1)


def features(x: Tensor) -> Tensor:
    """Return Φ (N, M), whose row n is φ_n = (1, x_n)."""
    return torch.cat([x.new_ones(len(x), 1), x], 1)


def xor_examples() -> tuple[Tensor, Tensor]:
    """Return the four patterns of XOR, x (4, 2) and t (4, 1)."""
    example = setting("XOR221")
    return float64(example["X"]), float64(example["t"]).unsqueeze(1)


def xor_descent(
    start: int, rule: Optimizer, *, batch_size: int = 0, loss: AnyLoss | None = None
) -> Descent:
    """Return the training of two hidden sigmoid units and one output on XOR, biases too.

    `start` is one of the six listed beginnings, from 0.
    """
    net = sigmoid_network((2, 2, 1), setting("XOR221")["inits"][start])
    net = Network(net.model, net.params, loss or net.loss)
    return net.descent(*xor_examples(), rule, batch_size=batch_size)


def worked_example_descent(rule: Optimizer) -> Descent:
    """Return the training of the worked 2-2-2 example: one pattern, biases as they are."""
    example = setting("S222")
    w = example["weights"]
    order = ["w1", "w2", "w3", "w4", "b1", "b1", "w5", "w6", "w7", "w8", "b2", "b2"]
    net = sigmoid_network((2, 2, 2), [w[name] for name in order])
    x, t = float64([example["inputs"]]), float64([example["targets"]])
    return net.descent(x, t, rule, frozen=FIXED_BIASES)
