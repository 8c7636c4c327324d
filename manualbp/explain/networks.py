"""Networks with given weights, laid out as the lectures write them, on the layers of the heart.

The lectures' weight matrix has a row for each source unit and a column for each receiving unit,
h_l = f(h_{l-1} W_l); Linear keeps torch's weight, which is the transpose. Matrices that come in or
go out here are the lectures'. Rows of x, y and targets are examples; all numbers are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from manualbp.checks.agreement import Inputs, through_autograd
from manualbp.errors import UsageError
from manualbp.layers import EVALUATION, AnyLayer, Linear, Sequential
from manualbp.losses import AnyLoss, HalfSquaredError, Penalty, weights
from manualbp.optimizers import SGD, Optimizer
from manualbp.parameters import Parameters, Views
from manualbp.training.descent import Descent
from manualbp.training.step import TrainingStep

float64 = partial(torch.tensor, dtype=torch.float64)
"""Make a float64 tensor of numbers."""


def flat(values: Tensor) -> list[float]:
    """Return all numbers of a tensor in one list."""
    return cast("list[float]", cast(Any, values).reshape(-1).tolist())


def nested(values: Tensor) -> Any:
    """Return the numbers of a tensor in lists of its shape."""
    return cast(Any, values).tolist()


@dataclass(frozen=True)
class Stage:
    """A layer in the middle of a network: what passed it on the way forward and backward."""

    layer: AnyLayer
    x: Tensor  # (N, I)
    y: Tensor  # (N, O)
    saved: Any  # what its backward pass needs
    dy: Tensor  # ∂E/∂y
    dx: Tensor  # ∂E/∂x, the dy of the layer below


@dataclass(frozen=True)
class Network:
    """A model, its weights and the error that it is trained for."""

    model: Sequential
    params: Parameters
    loss: AnyLoss = field(default_factory=HalfSquaredError)

    @property
    def matrices(self) -> list[Tensor]:
        """Return W_1, ..., W_L, each (n_{l-1}, n_l): views of the weights."""
        return transposed(self.params)

    def predict(self, x: Tensor) -> Tensor:
        """Return the outputs, one row an example."""
        return self.model.forward(self.params.views, x, mode=EVALUATION)[0]

    def activation_maps(self, x: Tensor) -> list[Tensor]:
        """Return h_1, h_2, ...: what a forward pass keeps as the inputs of W_2, W_3, ..."""
        _, saved = self.model.forward(self.params.views, x, mode=EVALUATION)
        layers = zip(self.model.layers, saved, strict=True)
        return [s.x for layer, s in layers if isinstance(layer, Linear)][1:]

    def error(self, x: Tensor, target: Tensor) -> float:
        """Return E."""
        return float(self.loss.forward(self.predict(x), target)[0])

    def output_error(self, x: Tensor, target: Tensor) -> Tensor:
        """Return ∂E/∂y, where the backward pass begins."""
        return self.loss.backward(self.loss.forward(self.predict(x), target)[1])

    def gradient(self, x: Tensor, target: Tensor) -> Parameters:
        """Return ∂E/∂w for all weights and biases, over all examples."""
        grads = self.params.zeros_like()
        step = TrainingStep(self.model, self.loss, SGD())
        step.add_gradients(self.params, grads, x, target, EVALUATION)
        return grads

    def gradients(self, x: Tensor, target: Tensor) -> list[Tensor]:
        """Return ∂E/∂W_1, ..., ∂E/∂W_L in the shapes of the matrices."""
        return transposed(self.gradient(x, target))

    def pull_back(self, x: Tensor, dy: Tensor) -> list[Tensor]:
        """Return Σ_n Σ_k dy[n,k] ∂y[n,k]/∂W_l for all l; dy = 1 gives the gradients of one output.

        Raises ValueError if dy has not the shape of the outputs.
        """
        grads = self.params.zeros_like()
        y, saved = self.model.forward(self.params.views, x, mode=EVALUATION)
        if dy.shape != y.shape:
            raise ValueError(f"dy has shape {tuple(dy.shape)}, expected {tuple(y.shape)}")
        self.model.backward_parameters(self.params.views, saved, dy, grads.views)
        return transposed(grads)

    def through_autograd(self, x: Tensor, dy: Tensor) -> list[Tensor]:
        """Return what `pull_back` returns, found by torch's autograd: another opinion."""
        results = through_autograd(self.model, Inputs(self.params, x, dy, 0), training=False)
        return [results[f"d{name}"].T for name in weights(self.params)]

    def stages(self, x: Tensor, dy: Tensor) -> list[Stage]:
        """Walk forward to y, then backward from dy = ∂E/∂y, and return all that was on the way.

        The same steps as Sequential's, with every result kept for the eye.
        """
        views, grads = self.params.views, self.params.zeros_like().views
        forward: list[tuple[str, AnyLayer, Tensor, Tensor, Any]] = []
        h = x
        for l, layer in enumerate(self.model.layers):
            y, saved = layer.forward(views[str(l)], h, mode=EVALUATION)
            forward.append((str(l), layer, h, y, saved))
            h = y
        stages: list[Stage] = []
        dh = dy
        for l, layer, x_l, y_l, saved in reversed(forward):
            dx = layer.backward(views[l], saved, dh, grads[l])
            stages.append(Stage(layer, x_l, y_l, saved, dh, dx))
            dh = dx
        return stages[::-1]

    def descent(
        self,
        x: Tensor,
        target: Tensor,
        rule: Optimizer,
        *,
        batch_size: int = 0,
        penalty: Penalty | None = None,
        frozen: tuple[str, ...] = (),
    ) -> Descent:
        """Return the training of this network by a rule at its own rate; it changes the weights.

        `batch_size` rows make an update, 0 all of them; parameters named in `frozen` stay.
        """
        step = TrainingStep(self.model, self.loss, rule, penalty, frozen=frozen)
        return Descent(step, self.params, x, target, batch_size)

    def copy(self) -> Network:
        """Return the same network with weights of its own."""
        return Network(self.model, self.params.clone(), self.loss)

    def collapsed(self) -> Network:
        """Return the single layer W_1 W_2 ... W_L that a network of linear layers amounts to.

        y = ((x W_1) W_2) ... W_L = x (W_1 W_2 ... W_L).   Source: Porr, section 7.
        Raises UsageError if there is a layer that is not linear.
        """
        for layer in self.model.layers:
            if not isinstance(layer, Linear):
                raise UsageError(
                    f"a network with {type(layer).__name__} units does not collapse: "
                    "expected linear layers only"
                )
        product = self.matrices[0]
        for w in self.matrices[1:]:
            product = product @ w
        return network([product])


def transposed(params: Parameters) -> list[Tensor]:
    """Return the weights, or their gradients, as source x receiving; biases are left out."""
    return [w.T for w in weights(params).values()]


def network(
    matrices: Sequence[Any], activation: AnyLayer | None = None, output: AnyLayer | None = None
) -> Network:
    """Return a network without biases: `activation` after every matrix but the last, then `output`.

    Each matrix is a tensor or nested lists, (n_{l-1}, n_l); None is the identity.
    """
    given = [torch.as_tensor(w, dtype=torch.float64) for w in matrices]
    layers: list[AnyLayer] = []
    for l, w in enumerate(given, 1):
        layers.append(Linear(*w.shape, bias=False))
        function = output if l == len(given) else activation
        layers += [function] if function else []
    model = Sequential(*layers)
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    for weight, w in zip(params.named().values(), given, strict=True):
        weight.copy_(w.T)
    return Network(model, params)


def jacobian(layer: AnyLayer, x: Tensor, params: Views | None = None) -> Tensor:
    """Return ∂y[k]/∂x[i] (K, I) at one input x (I,): unit vectors sent backward, one for each row.

    One pass does for all of them, because the rows of a batch do not know of each other.
    """
    grads = Parameters.zeros(layer.shapes(), dtype=x.dtype).views
    params = params or grads  # a layer without parameters
    y, _ = layer.forward(params, x.unsqueeze(0), mode=EVALUATION)
    units = torch.eye(y.shape[1], dtype=x.dtype)
    _, saved = layer.forward(params, x.expand(len(units), -1), mode=EVALUATION)
    return layer.backward(params, saved, units, grads)


def values_and_slopes(function: AnyLayer, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(v) and f'(v) of an activation function that works on each number apart."""
    nothing = Parameters.zeros(function.shapes()).views
    y, saved = function.forward(nothing, v, mode=EVALUATION)
    return y, function.backward(nothing, saved, torch.ones_like(v), nothing)
