"""The worked 2-2-2 example and the 2-1-1 exercise, and the ways in which they can be trained.

Units are sigmoid units, E is the half squared error, every update takes all examples together.
Source: Cazenave, "Backpropagation"; Krzywicki, "Example of BP calculation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, cast

import torch
from torch import Tensor

from manualbp.explain.examples import FIXED_BIASES as BIASES
from manualbp.explain.examples import sigmoid_network
from manualbp.explain.networks import Network, flat, float64, values_and_slopes
from manualbp.explain.plain import train_2_2_2
from manualbp.layers import Mode, Sequential
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD, State
from manualbp.parameters import Parameters
from manualbp.training.descent import Descent
from manualbp.training.step import TrainingStep

Biases = Literal["fixed", "own", "shared"]
"""What becomes of the biases: they stay; each unit learns its own; each layer learns one."""

Order = Literal["original", "updated"]
"""Which weights send the error back to the layer below: those before the update, which gives the
gradient, or those after it."""


@dataclass(frozen=True)
class WorkedStep(TrainingStep):
    """A training step with the two choices that the lectures leave open.

    For rules without memory, and a Sequential as the model.
    """

    biases: Biases = "own"
    order: Order = "original"

    def __call__(
        self,
        params: Parameters,
        grads: Parameters,
        state: State,
        x: Tensor,
        target: Tensor,
        coefficients: Sequence[Tensor],
        mode: Mode,
    ) -> Tensor:
        """As in TrainingStep; with order "updated", `grads` ends with the first layer's alone."""
        if self.order == "original":
            return super().__call__(params, grads, state, x, target, coefficients, mode)
        layers = cast(Sequential, self.model).layers
        y, saved = self.model.forward(params.views, x, mode=mode)
        _, saved_error = self.loss.forward(y, target)
        dh = self.loss.backward(saved_error)
        for l in reversed(range(len(layers))):
            here, there = params.views[str(l)], grads.views[str(l)]
            if layers[l].shapes():
                grads.flat.zero_()  # so that the update below moves layer l alone
                layers[l].backward_parameters(here, saved[l], dh, there)
                self._hold_biases(grads)
                self.optimizer.update(params.flat, grads.flat, state, coefficients)
            if l > 0:
                dh = layers[l].backward(here, saved[l], dh, there)  # through the new weights
        return y

    def add_gradients(
        self,
        params: Parameters,
        grads: Parameters,
        x: Tensor,
        target: Tensor,
        mode: Mode,
        share: float = 1.0,
    ) -> Tensor:
        y = super().add_gradients(params, grads, x, target, mode, share)
        self._hold_biases(grads)
        return y

    def _hold_biases(self, grads: Parameters) -> None:
        for name in BIASES:
            gradient = grads.named()[name]
            if self.biases == "fixed":
                gradient.zero_()
            elif self.biases == "shared":
                # b[o] = b for all o, so ∂E/∂b = Σ_o ∂E/∂b[o]; equal copies stay equal.
                gradient.copy_(gradient.sum().expand_as(gradient))


@dataclass(frozen=True)
class Example:
    """A network with what it is to learn."""

    net: Network
    x: Tensor  # (N, 2)
    target: Tensor  # (N, O)
    eta: float

    def without_biases(self) -> Example:
        """Return the example with biases of 0."""
        net = self.net.copy()
        for name in BIASES:
            net.params.named()[name].zero_()
        return Example(net, self.x, self.target, self.eta)

    def to(self, dtype: torch.dtype) -> Example:
        """Return the example with its numbers in another dtype."""
        params = Parameters(self.net.params.shapes, self.net.params.flat.to(dtype))
        net = Network(self.net.model, params, self.net.loss)
        return Example(net, self.x.to(dtype), self.target.to(dtype), self.eta)

    def training(self, biases: Biases = "fixed", order: Order = "original") -> Descent:
        """Return the training of a copy of the network."""
        rule = SGD(self.eta)
        step = WorkedStep(self.net.model, self.net.loss, rule, biases=biases, order=order)
        return Descent(step, self.net.copy().params, self.x, self.target)

    def course(
        self, at: Sequence[int], biases: Biases = "fixed", order: Order = "original"
    ) -> list[Point]:
        """Train, and return where the network stands after so many updates, in rising order."""
        training = self.training(biases, order)
        points: list[Point] = []
        for updates in at:
            training.run(updates - training.updates)
            outputs = flat(training.outputs())
            points.append(Point(updates, training.error(), outputs, parameters(training.params)))
        return points


@dataclass(frozen=True)
class Point:
    """Where a network stands on its way."""

    updates: int
    error: float
    outputs: list[float]
    parameters: list[float]  # w1, w2, ..., then the biases


def example(name: str = "S222") -> Example:
    """Return an example of the lectures by the name of its setting: S222..., E211...

    The weights w1, w2, ... go to the hidden units one after the other, then to the output units.
    """
    data = setting(name)
    x = float64(data["inputs"]).reshape(-1, 2)
    target = float64(data["targets"] if "targets" in data else data["target"])
    target = target.reshape(len(x), -1)
    weights = [value for key, value in data["weights"].items() if key.startswith("w")]
    outputs = target.shape[1]
    hidden = len(weights) // (2 + outputs)
    first, second = weights[: 2 * hidden], weights[2 * hidden :]
    b1, b2 = data["weights"]["b1"], data["weights"]["b2"]
    net = sigmoid_network((2, hidden, outputs), [*first, *[b1] * hidden, *second, *[b2] * outputs])
    return Example(net, x, target, data["eta"])


def parameters(params: Parameters) -> list[float]:
    """Return w1, w2, ... and then the biases; or their gradients."""
    named = params.named()
    order = ("0.weight", "2.weight", "0.bias", "2.bias")
    return [number for name in order for number in flat(named[name])]


def quantities(example: Example) -> dict[str, float]:
    """Return every number on the way through the 2-2-2 example, under the names of its figures.

    The two passes are those of the layers; δ of a unit is its dE_dnet.
    """
    net, x, target = example.net, example.x, example.target
    dy = net.output_error(x, target)
    hidden, hidden_out, output, output_out = net.stages(x, dy)
    found: dict[str, float] = {}
    for units, sums, out in (("h", hidden, hidden_out), ("o", output, output_out)):
        _, slopes = values_and_slopes(out.layer, out.x)
        for j in (0, 1):
            found[f"net_{units}{j + 1}"] = float(sums.y[0, j])
            found[f"out_{units}{j + 1}"] = float(out.y[0, j])
            found[f"dE_dout_{units}{j + 1}"] = float(out.dy[0, j])
            found[f"dout_dnet_{units}{j + 1}"] = float(slopes[0, j])
            found[f"dE_dnet_{units}{j + 1}"] = float(out.dx[0, j])
    for k in (0, 1):
        alone = dy * float64([k == 0, k == 1])  # the error of one output, the other one's left out
        sent = net.stages(x, alone)[2].dx
        found[f"E_o{k + 1}"] = float(net.loss.forward(output_out.y[:, k], target[:, k])[0])
        found |= {f"dEo{k + 1}_dout_h{j + 1}": float(sent[0, j]) for j in (0, 1)}
    found["dEo1_dnet_o1"] = found["dE_dnet_o1"]
    found["dnet_o1_dw5"] = found["out_h1_short"] = float(output.x[0, 0])
    found["dnet_o1_dout_h1"] = float(net.params.views["2"].weight[0, 0])
    found["dnet_h1_dw1"] = float(hidden.x[0, 0])
    found["E_total"] = found["E_initial_again"] = net.error(x, target)
    *weights, b1, _, b2, _ = parameters(example.training("shared").gradients())
    found |= {f"dE_dw{k}": weight for k, weight in enumerate(weights, 1)}
    found |= {"dE_db1": b1, "dE_db2": b2}
    (after,) = example.course([1], "shared")
    *weights, b1, _, b2, _ = after.parameters
    found |= {f"w{k}_new": weight for k, weight in enumerate(weights, 1)}
    return found | {"b1_new": b1, "b2_new": b2}


def sequential_gradient(example: Example) -> list[float]:
    """Return what takes the place of ∂E/∂w1, ..., ∂E/∂w4 where the output weights change first."""
    (after,) = example.course([1], order="updated")
    before = parameters(example.net.params)
    pairs = zip(before[:4], after.parameters[:4], strict=True)
    return [(old - new) / example.eta for old, new in pairs]


def plain_course(example: Example, updates: int, biases: Biases, order: Order) -> list[float]:
    """Return E and the outputs of the 2-2-2 example after so many updates, in plain arithmetic."""
    start, x, t = parameters(example.net.params), flat(example.x), flat(example.target)
    return train_2_2_2(start[:8], start[8:], x, t, example.eta, updates, biases, order)


def batch_results(example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs (N, O) and ∂E/∂W of both layers, a row for each receiving unit."""
    views = example.training("own").gradients().views
    return example.net.predict(example.x), views["0"].weight, views["2"].weight


def error_of_printed_weights() -> float:
    """Return E of the 2-2-2 example with the eight updated weights as Cazenave prints them."""
    start = example()
    views = start.net.params.views
    printed = float64([_printed(f"w{k}_new") for k in range(1, 9)]).view(2, 2, 2)
    views["0"].weight.copy_(printed[0])
    views["2"].weight.copy_(printed[1])
    return start.net.error(start.x, start.target)


def recovered_weights() -> list[float]:
    """Return w3, w4, w7, w8, which stood in a picture, solved from numbers that are printed.

    δ of o2 follows from its printed output, and then w7 = new w7 + η δ out_h1. For h2 the printed
    output makes a third equation, from which δ follows as well:

        w3 i1 + w4 i2 = log(out_h2 / (1 - out_h2)) - b1
        w3 = new w3 + η δ i1,  w4 = new w4 + η δ i2
    """
    (i1, i2), (_, t2) = figure("C.given.inputs").value, figure("C.given.targets").value
    eta, b1 = figure("C.given.eta").value, figure("C.given.b1").value
    h1, h2, o2, w3, w4, w7, w8 = (
        _printed(name)
        for name in ("out_h1", "out_h2", "out_o2", "w3_new", "w4_new", "w7_new", "w8_new")
    )
    sum_h2 = log(h2 / (1 - h2)) - b1
    delta_h2 = (sum_h2 - w3 * i1 - w4 * i2) / (eta * (i1**2 + i2**2))
    delta_o2 = (o2 - t2) * o2 * (1 - o2)
    hidden = [w3 + eta * delta_h2 * i1, w4 + eta * delta_h2 * i2]
    return [*hidden, w7 + eta * delta_o2 * h1, w8 + eta * delta_o2 * h2]


def printed_products() -> list[float]:
    """Return what the printed, rounded operands give: dE/dw5, dEo1/dnet, ..., dE/dw1."""
    e, slope, h1 = (_printed(n) for n in ("dE_dout_o1", "dout_dnet_o1", "out_h1"))
    sent, hidden_slope = _printed("dE_dout_h1"), _printed("dout_dnet_h1")
    return [
        e * slope * h1,
        e * slope,
        _printed("dEo1_dnet_o1") * _printed("dnet_o1_dout_h1"),
        _printed("dEo1_dout_h1") + _printed("dEo2_dout_h1"),
        sent * hidden_slope * _printed("dnet_h1_dw1"),
    ]


def _printed(name: str) -> float:
    """Return the number as Cazenave prints it."""
    return float(figure(f"C.{name}").printed or "")
