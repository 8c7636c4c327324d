"""One linear layer and its weights as rows (w_0, w_1, ...), and descent with all examples at once.

The layer's bias is the weight of φ_0 = 1, so that a_nk = Σ_i W_ki φ_ni with φ_n = (1, x_n), the way
the lectures write logistic regression and least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from manualbp.explain.networks import Network
from manualbp.losses import AnyLoss, Penalty
from manualbp.models import build
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep


def linear_model(w: Tensor, loss: AnyLoss) -> Network:
    """Return the model "logistic" with the rows w (K, M), one for each output, first the bias."""
    model = build("logistic", w.shape[1] - 1, w.shape[0])
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    params.named()["0.bias"].copy_(w[:, 0])
    params.named()["0.weight"].copy_(w[:, 1:])
    return Network(model, params, loss)


def rows(params: Parameters) -> Tensor:
    """Return the rows (K, M) of a linear layer, or of its gradient."""
    named = params.named()
    return torch.cat([named["0.bias"].unsqueeze(1), named["0.weight"]], 1)


def features(x: Tensor) -> Tensor:
    """Return Φ (N, M), whose row n is φ_n = (1, x_n)."""
    return torch.cat([x.new_ones(len(x), 1), x], 1)


def descent(
    net: Network,
    x: Tensor,
    t: Tensor,
    *,
    eta: float,
    penalty: Penalty | None = None,
    frozen: tuple[str, ...] = (),
) -> Iterator[Network]:
    """Yield the network as it is and after each update w ← w - η ∂E/∂w, for as long as one asks.

    The gradient is that of all examples at once and of the penalty; the weights change in place,
    but for those whose names are frozen.
    """
    step = TrainingStep(net.model, net.loss, SGD(eta), penalty, frozen=frozen)
    engine = ManualEngine(step, net.params, torch.Generator())
    while True:
        yield net
        engine.plan([eta])
        engine.step(x, t)


def descend(
    net: Network,
    x: Tensor,
    t: Tensor,
    *,
    eta: float,
    updates: int,
    frozen: tuple[str, ...] = (),
) -> Network:
    """Return the network after this many updates of `descent`."""
    return next(islice(descent(net, x, t, eta=eta, frozen=frozen), updates, None))
