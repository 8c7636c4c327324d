"""Cost functions: squared errors, cross-entropy, the softmax before it and λ R(w) beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.checks.differences import central_differences
from manualbp.explain.networks import Network, float64, jacobian, nested, values_and_slopes
from manualbp.explain.page import CLOSE, Page, close
from manualbp.explain.registry import topic
from manualbp.layers import Linear, Sequential, Sigmoid, Softmax, Tanh
from manualbp.lectures import figure, setting
from manualbp.losses import (
    AnyLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    CrossEntropyOfProbabilities,
    HalfSquaredError,
    MSELoss,
    Penalty,
)
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters

ETA = 0.5
"""The rate at which the page lets weights shrink."""


def outputs_and_targets() -> tuple[Tensor, Tensor]:
    """Return the example of costs: outputs (2, 3), which are probabilities, and targets (2, 3)."""
    data = setting("COST")
    return float64(data["v"]), float64(data["y"])


def cost(loss: AnyLoss, y: Tensor, t: Tensor) -> tuple[float, Tensor]:
    """Return E and ∂E/∂y."""
    E, saved = loss.forward(y, t)
    return float(E), loss.backward(saved)


@dataclass(frozen=True)
class SoftmaxSteps:
    """The way back through cross-entropy and softmax for one example, all (K,) but `jacobian`."""

    y: Tensor  # softmax(a)
    dy: Tensor  # ∂E/∂y_k = -t_k / y_k
    jacobian: Tensor  # (K, K), ∂y_k/∂a_j = y_k (δ_kj - y_j)
    delta: Tensor  # ∂E/∂a_j = Σ_k ∂E/∂y_k ∂y_k/∂a_j
    closed: Tensor  # the same in one step, y_j Σ_k t_k - t_j
    elementwise: Tensor  # ∂E/∂y_j ∂y_j/∂a_j alone, which is wrong


def softmax_steps(a: Tensor, t: Tensor) -> SoftmaxSteps:
    """Walk back from E = -Σ_k t_k ln y_k to the logits a of one example.

    Shapes: a, t (K,).   Source: IISc, the output's δ, which is printed for an elementwise g.
    """
    y = Softmax().forward(Parameters.zeros({}).views, a)[0]
    _, dy = cost(CrossEntropyOfProbabilities(), y, t)
    J = jacobian(Softmax(), a)
    _, closed = cost(CrossEntropyLoss(reduction="sum"), a, t)
    return SoftmaxSteps(y, dy, J, J.T @ dy, closed, J.diagonal() * dy)


@dataclass(frozen=True)
class PenalisedPass:
    """A pass forward and backward through the 2-2-2 network with E = -Σ t ln y + λ R(w)."""

    z: Tensor  # (2,), hidden
    y: Tensor  # (2,)
    E: float
    delta2: Tensor  # (2,), ∂E/∂a² of the output's logits
    delta1: Tensor  # (2,), ∂E/∂a¹
    dW1: Tensor  # (2, 2), row = receiving unit, with λ w
    dW2: Tensor


def penalised_network() -> tuple[Network, Penalty, Tensor, Tensor]:
    """Return the 2-2-2 network, tanh and then softmax, its penalty, x (1, 2) and t (1, 2)."""
    data = setting("D_NET")
    w = data["weights"]
    model = Sequential(Linear(2, 2), Tanh(), Linear(2, 2))
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    params.load_state_dict(
        {
            "0.weight": float64([[w["w1"], w["w2"]], [w["w3"], w["w4"]]]),
            "0.bias": float64([w["b1"], w["b1"]]),
            "2.weight": float64([[w["w5"], w["w6"]], [w["w7"], w["w8"]]]),
            "2.bias": float64([w["b2"], w["b2"]]),
        }
    )
    net = Network(model, params, CrossEntropyLoss(reduction="sum"))
    return net, Penalty(data["lam"]), float64([data["inputs"]]), float64([data["targets"]])


def penalised_pass() -> PenalisedPass:
    """Return one pass through that network."""
    net, penalty, x, t = penalised_network()
    hidden, squash, output = net.stages(x, net.output_error(x, t))
    y = Softmax().forward(Parameters.zeros({}).views, output.y)[0]
    grads = net.gradient(x, t)
    penalty.backward(net.params, grads)
    return PenalisedPass(
        z=squash.y[0],
        y=y[0],
        E=net.error(x, t) + float(penalty.forward(net.params)),
        delta2=output.dy[0],
        delta1=hidden.dy[0],
        dW1=grads.named()["0.weight"],
        dW2=grads.named()["2.weight"],
    )


def factors_of_r(examples: int) -> tuple[float, float]:
    """Return what R is multiplied with in E: λ R inside the sum over examples, and beside it."""
    net, penalty, x, t = penalised_network()
    x, t = x.repeat(examples, 1), t.repeat(examples, 1)
    lambda_r = float(penalty.forward(net.params))
    inside = sum(net.error(x[n : n + 1], t[n : n + 1]) + lambda_r for n in range(examples))
    beside = net.error(x, t) + lambda_r
    data, R = net.error(x, t), lambda_r / penalty.strength
    return (inside - data) / R, (beside - data) / R


def shrinking(eta: float) -> tuple[Tensor, Tensor, float]:
    """Return W, W after an update in which only λ R has a gradient, and λ.

    The input is 0, so that no weight has a part in the output.
    """
    data = setting("COST")
    model = Sequential(Linear(2, 2, bias=False))
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    params.named()["0.weight"].copy_(float64(data["W"]))
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    weight = params.named()["0.weight"]
    before = weight.clone()
    Network(model, params).descent(zeros, zeros, SGD(eta), penalty=Penalty(data["lam"])).run(1)
    return before, weight, data["lam"]


def penalty_of_weights() -> float:
    """Return λ R of the example's weights."""
    data = setting("COST")
    params = Parameters.zeros(Linear(2, 2).shapes(), dtype=torch.float64)
    params.views.weight.copy_(float64(data["W"]))
    params.views.bias.fill_(7.0)  # biases have no part in R
    return float(Penalty(data["lam"]).forward(params))


@topic("costs", "Cost functions, softmax, and where λ R(w) belongs", "R13", "R21", "R22")
def _costs(page: Page) -> None:
    _squared(page)
    _cross_entropy(page)
    _softmax(page)
    _saturated(page)
    _penalty(page)


def _squared(page: Page) -> None:
    y, t = outputs_and_targets()
    page.heading("Squared errors")
    page.say(
        """Two examples with three outputs each. The lectures write the squared error in three
        ways: with ½, without, and as a mean. We write y for the outputs and t for the targets;
        the slide on costs has v and y."""
    )
    page.given("y", y, "a row for each example")
    page.given("t", t)
    E, dy = cost(MSELoss("sum"), y, t)
    page.line(
        "E, the sum",
        "Σ_n Σ_k (y_nk - t_nk)²",
        E,
        numbers="0.09 + 0.04 + 0.01 + 0.01 + 0.36 + 0.49",
        figure="D.cost.mse",
    )
    page.line("∂E/∂y_nk", "2 (y_nk - t_nk)", dy, figure="D.cost.mse_grad")
    for name, loss, equation, share, slope in (
        ("with ½", HalfSquaredError(), "½ Σ_n Σ_k (y_nk - t_nk)²", 1 / 2, "y_nk - t_nk"),
        ("the mean", MSELoss(), "1/M Σ_n Σ_k (y_nk - t_nk)²", 1 / 6, "2/M (y_nk - t_nk)"),
    ):
        E_here, dy_here = cost(loss, y, t)
        page.line(
            f"E, {name}",
            equation,
            E_here,
            numbers="½ · 1" if share == 0.5 else "1/6 · 1",
            equals=E * share,
            because="a half of the sum" if share == 0.5 else "a sixth of the sum",
        )
        page.line(
            "∂E/∂y_nk",
            slope,
            dy_here,
            equals=_differences(loss, y, t),
            because="central differences",
            tolerance=1e-8,
        )
    page.say(
        """All three have their minimum in the same place, and their gradients differ by a factor:
        a step with ½ and the rate η is a step of the sum with η/2, and of the mean with 3η
        here."""
    )


def _cross_entropy(page: Page) -> None:
    y, t = outputs_and_targets()
    page.heading("Cross-entropy")
    page.say(
        """The outputs are probabilities, and the cost is minus the log of the one that was given
        to the class that came."""
    )
    loss = CrossEntropyOfProbabilities()
    E, dy = cost(loss, y, t)
    page.line(
        "E",
        "E = -Σ_n Σ_k t_nk ln y_nk",
        E,
        numbers="-ln 0.7 - ln 0.3",
        figure="D.cost.ce",
    )
    page.line("∂E/∂y_nk", "-t_nk / y_nk", dy, figure="D.cost.ce_grad")
    page.line(
        "∂E/∂y_nk",
        "-t_nk / y_nk",
        dy,
        equals=_differences(loss, y, t),
        because="central differences",
        tolerance=1e-8,
    )
    E_of_zero, dy = cost(loss, float64([0.0, 1.0]), float64([0.0, 1.0]))
    page.claim(
        """An output of 0 costs nothing where the target is 0: 0 ln 0 counts as 0, as the limit
        of y ln y does, and not as NaN.""",
        E_of_zero == 0 and nested(dy) == [0, -1],
        "y = t = (0, 1): E = 0, slope (0, -1)",
    )


def _softmax(page: Page) -> None:
    data = figure("D.delta_softmax").value
    a, t = float64([1.0, 2.0, 3.0]), float64([0.0, 0.0, 1.0])
    steps = softmax_steps(a, t)
    page.heading("Softmax and cross-entropy, step by step")
    page.say(
        """The softmax makes probabilities of any logits a: each y_k is positive, and they sum
        to 1. Its sum runs over an index of its own, j; with i for both, as on the slide, the
        formula is ambiguous."""
    )
    page.given("a", a)
    page.given("t", t, "class 3")
    page.line("y_k", "e^a_k / Σ_j e^a_j", steps.y, figure="act.softmax")
    page.line(
        "∂E/∂y_k",
        "-t_k / y_k",
        steps.dy,
        equals=_differences(CrossEntropyOfProbabilities(), steps.y, t),
        because="central differences",
        tolerance=1e-8,
    )
    page.say(
        """Every logit moves every output, because all of them share the sum. So the derivative
        of the softmax is a matrix, in which row k and column j tell how y_k answers to a_j; its
        columns sum to 0, as the outputs always sum to 1."""
    )
    page.line("∂y_k/∂a_j", "y_k (δ_kj - y_j)", steps.jacobian, figure="act.softmax_jac")
    page.line(
        "δ_j, in two steps",
        "Σ_k ∂E/∂y_k ∂y_k/∂a_j",
        steps.delta,
        equals=data[0],
        because="the figure D.delta_softmax",
    )
    page.say(
        """Put in by hand: δ_j = Σ_k (-t_k / y_k) y_k (δ_kj - y_j) = y_j Σ_k t_k - t_j. The y_k
        cancel, and where the targets sum to 1 what is left is y_j - t_j."""
    )
    page.line(
        "δ_j, in one step",
        "y_j - t_j",
        steps.closed,
        equals=steps.delta,
        because="the two steps",
    )
    page.claim(
        """The lecture's δ_k = g'(a_k) ∂E/∂y_k holds for units that do not know of each other.
        For a softmax it keeps the diagonal of the matrix only, and is wrong.""",
        close(nested(steps.elementwise), data[1], CLOSE)
        and not close(nested(steps.elementwise), data[0], 1e-3),
        "it gives (" + ", ".join(f"{d:.6f}" for d in steps.elementwise + 0.0) + ")",
    )
    t = float64([0.0, 1.0, 1.0])
    page.line(
        "δ_j for t = (0, 1, 1)",
        "y_j Σ_k t_k - t_j",
        softmax_steps(a, t).closed,
        numbers="2 y_j - t_j",
        equals=2 * steps.y - t,
        because="put in by hand",
    )
    page.heading("Why a network is trained in one step")
    page.line(
        "y_k",
        "e^(a_k - max a) / Σ_j e^(a_j - max a)",
        Softmax().forward(Parameters.zeros({}).views, float64([1000.0, 1000.0, 999.0]))[0],
        numbers="(1, 1, e^-1) / (2 + e^-1) for a = (1000, 1000, 999)",
        figure="act.softmax_big",
    )
    a, t = float64([1000.0, 0.0]), float64([0.0, 1.0])
    E, delta = cost(CrossEntropyLoss(reduction="sum"), a, t)
    two_steps = softmax_steps(a, t)
    E_of_y, _ = cost(CrossEntropyOfProbabilities(), two_steps.y, t)
    page.claim(
        """Where an output is too small for a number, -t/y is infinite and the two steps end in
        NaN; the logits still tell E and y - t.""",
        E == 1000
        and nested(delta) == [1, -1]
        and E_of_y == inf
        and bool(two_steps.delta.isnan().any()),
        f"a = (1000, 0), t = (0, 1): E = {E_of_y} and {E:g}, "
        f"δ = {nested(two_steps.delta)} and {nested(delta)}",
    )


def _saturated(page: Page) -> None:
    a, t = float64([-6.0]), float64([1.0])
    y, slope = values_and_slopes(Sigmoid(), a)
    _, dy = cost(HalfSquaredError(), y, t)
    squared = dy * slope
    _, crossed = cost(BCEWithLogitsLoss("sum"), a, t)
    page.heading("Which cost for which output")
    page.say(
        """A sigmoid unit with a = -6 says y = 0.0025 where t = 1 is right: as wrong as can be.
        With the squared error the slope y (1 - y) of the sigmoid stays in δ, and the unit hardly
        learns. The cross-entropy of two classes divides by just this slope, as the softmax's
        does."""
    )
    for name, equation, delta, loss in (
        ("δ, squared error", "(y - t) y (1 - y)", squared, HalfSquaredError()),
        ("δ, cross-entropy", "y - t", crossed, BCEWithLogitsLoss("sum")),
    ):
        through = Sigmoid() if loss == HalfSquaredError() else None
        page.line(
            name,
            equation,
            delta,
            equals=_differences(loss, a, t, through),
            because="central differences",
            tolerance=1e-6,
        )
    ratio = float(crossed / squared)
    page.claim(
        "The cross-entropy's step is 1/(y (1 - y)) times as long.",
        abs(ratio * float(slope) - 1) < CLOSE,
        f"{ratio:.1f} times here",
    )
    page.picture(
        "saturation",
        "Error and δ of a sigmoid unit with t = 1. Where the unit is wrong (a < 0) the squared "
        "error is flat.",
        _draw_saturation,
    )


def _penalty(page: Page) -> None:
    page.heading("λ R(w), and where it belongs")
    page.say(
        """The lecture adds λ R(w) to the error and leaves R open. With R = ½ Σ w² over all
        weights, but no bias, its slope is λ w. It depends on the weights directly, not through
        any output: so it is added to ∂E/∂w and has no part in any δ."""
    )
    page.line(
        "λ R",
        "½ · λ Σ w²",
        penalty_of_weights(),
        numbers="½ · 0.01 · (1 + 4 + 0.25 + 0)",
        figure="D.cost.reg",
    )
    found = penalised_pass()
    data = setting("D_NET")
    page.say(
        """A 2-2-2 network with tanh, softmax and cross-entropy, and λ = 0.01. The two δ are those
        without λ; the last term of both weight derivatives is λ w."""
    )
    page.given("x", data["inputs"])
    page.given("t", data["targets"])
    page.given("w1 ... w8, b1, b2", list(data["weights"].values()))
    names = (
        ("z_j", "tanh(a¹_j)", found.z),
        ("y_k", "exp(a²_k) / Σ_j exp(a²_j)", found.y),
        ("E", "-Σ_k t_k ln y_k + λ R", found.E),
        ("δ²_k", "y_k - t_k", found.delta2),
        ("δ¹_j", "(1 - z_j²) Σ_k δ²_k w²_kj", found.delta1),
        ("∂E/∂w¹_ji", "δ¹_j x_i + λ w¹_ji", found.dW1),
        ("∂E/∂w²_kj", "δ²_k z_j + λ w²_kj", found.dW2),
    )
    for (name, equation, value), expected in zip(names, figure("D.net").value, strict=True):
        page.line(name, equation, value, equals=expected, because="the figure D.net")
    page.say(
        """The slide writes λ R into the error E^n of one example, and E is the sum of these over
        the examples. Then R is counted once for each example, and the same λ means more the more
        data there are. Beside the sum, or as λ/N inside, it is counted once. Here N is 4."""
    )
    inside, beside = factors_of_r(4)
    expected = figure("D.lambda_N").value
    page.line(
        "factor of R, beside",
        "(E - Σ_n E^n) / R,  E = Σ_n E^n + λ R",
        beside,
        equals=expected[1],
        because="the figure D.lambda_N",
    )
    page.line(
        "factor of R, inside",
        "(E - Σ_n E^n) / R,  E = Σ_n (E^n + λ R)",
        inside,
        numbers="4 · 0.01",
        equals=expected[0],
        because="the figure D.lambda_N",
    )
    page.say("Where the data have no gradient, an update makes every weight a little shorter.")
    before, after, lam = shrinking(ETA)
    page.given("w_ij", before)
    page.line(
        "w_ij after an update",
        "w_ij - η (0 + λ w_ij)",
        after,
        numbers="w_ij - 0.5 · 0.01 w_ij",
        equals=(1 - ETA * lam) * before,
        because="(1 - η λ) w_ij",
    )
    page.say("This shrinking gives the penalty its other name, weight decay.")


def _differences(loss: AnyLoss, y: Tensor, t: Tensor, through: Sigmoid | None = None) -> Tensor:
    """Return ∂E/∂y by central differences, or ∂E/∂a where `through` turns a into y."""
    y = y.clone()

    def E() -> Tensor:
        outputs = values_and_slopes(through, y)[0] if through else y
        return loss.forward(outputs, t)[0]

    return central_differences(E, y, float64(1.0))


def _draw_saturation() -> Picture:
    a = torch.linspace(-8, 4, 200, dtype=torch.float64)
    t = torch.ones_like(a)
    y, slope = values_and_slopes(Sigmoid(), a)
    _, dy = cost(HalfSquaredError(), y, t)
    _, crossed = cost(BCEWithLogitsLoss("sum"), a, t)
    picture = Picture(figsize=(8.0, 3.4), layout="constrained")
    axes: Any = picture.subplots(1, 2)
    axes[0].plot(a, 0.5 * (y - t) ** 2, label="½ (y - t)²")
    axes[0].plot(a, -y.log(), label="-ln y")
    axes[0].set(xlabel="a", ylabel="E")
    axes[0].legend()
    axes[1].plot(a, dy * slope, label="(y - t) y (1 - y)")
    axes[1].plot(a, crossed, label="y - t")
    axes[1].set(xlabel="a", ylabel="δ = ∂E/∂a")
    axes[1].legend()
    return picture
