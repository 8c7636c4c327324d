"""A multi-layer perceptron is learned features φ(x), and logistic or linear regression on them."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import linear_model, rows
from manualbp.explain.networks import Network, float64, nested
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.explain.topics.least_squares import least_squares
from manualbp.explain.topics.logistic_regression import TWO_CLASSES, maximum_likelihood
from manualbp.layers import Linear, Sequential, Tanh
from manualbp.lectures import setting
from manualbp.losses import AnyLoss, HalfSquaredError
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters

HIDDEN = ("0.weight", "0.bias")
"""The parameters of the features, W¹ and b¹."""
OUTPUT = "2"
"""The output layer, with W² and b²."""
START = 5
"""Which of the starts for XOR is taken."""
ETA = 0.5
UPDATES = 1500
ETA_OF_CURVE = 0.005
UPDATES_OF_CURVE = 1500


def perceptron(hidden: Tensor, output: Tensor, loss: AnyLoss) -> Network:
    """Return the network φ_j = tanh(Σ_i w_ji¹ x_i + b_j¹), a_k = Σ_j w_kj² φ_j + b_k².

    `hidden` (J, 1 + I) and `output` (K, 1 + J) are rows (bias, weights), as in linear regression.
    """
    (units, width), outputs = hidden.shape, len(output)
    model = Sequential(Linear(width - 1, units), Tanh(), Linear(units, outputs))
    net = Network(model, Parameters.zeros(model.shapes(), dtype=torch.float64), loss)
    for layer, row in (("0", hidden), (OUTPUT, output)):
        net.params.named()[f"{layer}.bias"].copy_(row[:, 0])
        net.params.named()[f"{layer}.weight"].copy_(row[:, 1:])
    return net


def output_rows(params: Parameters) -> Tensor:
    """Return the rows (bias, weights) of the output layer, or of its gradient."""
    named = params.named()
    return torch.cat([named[f"{OUTPUT}.bias"].unsqueeze(1), named[f"{OUTPUT}.weight"]], 1)


def learned_features(net: Network, x: Tensor) -> Tensor:
    """Return φ(x), the activations of the hidden layer: what the output layer gets to see."""
    return net.activation_maps(x)[0]


def output_alone(net: Network) -> Network:
    """Return the output layer as a model of its own, whose inputs are the features."""
    return linear_model(output_rows(net.params), net.loss)


def xor() -> tuple[Tensor, Tensor]:
    """Return x (4, 2) and t (4, 1)."""
    data = setting("XOR221")
    return float64(data["X"]), float64(data["t"]).unsqueeze(1)


def xor_network() -> Network:
    """Return a 2-2-1 network with tanh and a logistic output before its training."""
    w = setting("XOR221")["inits"][START]
    hidden = float64([[w[4], w[0], w[1]], [w[5], w[2], w[3]]])
    return perceptron(hidden, float64([[w[8], w[6], w[7]]]), TWO_CLASSES)


def curve() -> tuple[Tensor, Tensor]:
    """Return thirteen points of t = sin(1.5 x): x (13, 1), t (13, 1)."""
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(1)
    return x, (1.5 * x).sin()


def curve_network() -> Network:
    """Return a 1-3-1 network with tanh and a linear output, the best for its first features."""
    x, t = curve()
    hidden = float64([[-1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    net = perceptron(hidden, torch.zeros(1, 4, dtype=torch.float64), HalfSquaredError())
    return perceptron(hidden, rows(least_squares(learned_features(net, x), t).params), net.loss)


@topic("features", "A network is learned features and a regression on them", "R38")
def _features(page: Page) -> None:
    page.say(
        """A network with one hidden layer does two things. It maps x to features
        φ(x) = g(W¹ x + b¹), and it does logistic regression on φ (with the cross-entropy), or
        linear regression (with the squared error). In logistic regression only W² and b² are
        learned and somebody has to think of φ; in a network {W¹, b¹, W², b²} are."""
    )
    _at_the_start(page)
    _frozen(page)
    _all_four(page)
    _regression(page)


def _at_the_start(page: Page) -> None:
    x, t = xor()
    net = xor_network()
    phi = learned_features(net, x)
    page.heading("The output layer is logistic regression")
    page.say("XOR, with two tanh units and a logistic output, before any training.")
    page.table(("x_1", "x_2", "t", "φ_1", "φ_2"), nested(torch.cat([x, t, phi], 1)), "Features")
    page.line(
        "∂E/∂w²_j, j = 0, 1, 2",
        "Σ_n (y_n - t_n) φ_nj,  with φ_n0 = 1 for b²",
        output_rows(net.gradient(x, t)),
        equals=rows(output_alone(net).gradient(phi, t)),
        because="logistic regression whose inputs are the φ of the table",
    )


def _frozen(page: Page) -> None:
    x, t = xor()
    net = xor_network()
    phi = learned_features(net, x)
    best = maximum_likelihood(phi, t)
    page.heading("With the features frozen")
    page.line(
        "(b, w_1, w_2), on x",
        "arg min E of logistic regression",
        rows(maximum_likelihood(x, t).params),
        equals=[[0.0, 0.0, 0.0]],
        because="XOR has no line: the best is y = ½ for all",
    )
    net.descent(x, t, SGD(ETA), frozen=HIDDEN).run(5000)
    page.line(
        "(b², w²_1, w²_2), on φ",
        f"w²_j - η Σ_n (y_n - t_n) φ_nj, 5000 times with η = {ETA}",
        output_rows(net.params),
        equals=rows(best.params),
        because="the point of maximum likelihood of logistic regression on φ",
        tolerance=1e-8,
    )
    page.claim(
        "That is the best that these features allow, and not good.",
        net.error(x, t) > 2.5,
        f"E = {net.error(x, t):.4f}; with y = ½ for all it is 4 ln 2 = 2.7726",
    )


def _all_four(page: Page) -> None:
    x, t = xor()
    net = xor_network()
    net.descent(x, t, SGD(ETA)).run(UPDATES)
    phi = learned_features(net, x)
    y = net.predict(x).sigmoid()
    page.heading("With the features learned")
    page.say(
        f"""Now all of W¹, b¹, W², b² are updated, {UPDATES} times. The hidden layer moves the four
        points until a line separates the classes; to draw that line is all that the output has to
        do."""
    )
    page.table(
        ("x_1", "x_2", "t", "φ_1", "φ_2", "y"), nested(torch.cat([x, t, phi, y], 1)), "Features"
    )
    page.line(
        "y_n",
        "σ(b² + Σ_j w²_j φ_nj)",
        y.flatten(),
        equals=output_alone(net).predict(phi).sigmoid().flatten(),
        because="the output layer alone, on the φ of the table",
    )
    wrong = int(((y > 0.5) != (t == 1)).sum())
    page.claim("All four are right.", wrong == 0, f"E = {net.error(x, t):.4f}")
    page.claim(
        "On the learned features the classes are separable; on x no line separates them.",
        is_separated(output_alone(net), phi, t),
        f"(b², w²_1, w²_2) = {', '.join(f'{w:.3f}' for w in output_rows(net.params).flatten())}",
    )
    page.picture(
        "xor",
        "XOR after training. Left, the inputs and where y is above ½; right, the same four points "
        "as features, the two with t = 0 nearly in one place. There the boundary is a line.",
        _draw_xor,
    )


def _regression(page: Page) -> None:
    x, t = curve()
    net = curve_network()
    phi = learned_features(net, x)
    page.heading("Linear output and squared error: regression on features")
    page.say(
        """Thirteen points of t = sin(1.5 x), and three units tanh(x - 1), tanh(x), tanh(x + 1).
        The output is linear in these, so that the best W², b² are those of least squares."""
    )
    page.line(
        "E with these features",
        "½ Σ_n (b² + Σ_j w²_j φ_nj - t_n)²",
        net.error(x, t),
        equals=least_squares(phi, t).error(phi, t),
        because="least squares on φ",
    )
    grads = net.gradient(x, t)
    of_output = float(output_rows(grads).abs().max())
    of_features = float(grads.named()["0.weight"].abs().max())
    page.claim(
        "The output layer is done, its gradient is zero; the features' gradient is not.",
        of_output < 1e-12 < 0.1 < of_features,
        f"max |∂E/∂W²| = {of_output:.0e}, max |∂E/∂W¹| = {of_features:.2f}",
    )
    before = net.error(x, t)
    net.descent(x, t, SGD(ETA_OF_CURVE)).run(UPDATES_OF_CURVE)
    after = net.error(x, t)
    page.claim(
        f"After {UPDATES_OF_CURVE} updates of all four the error is a fiftieth or less.",
        after < before / 50,
        f"E = {before:.4f} before, {after:.4f} after, η = {ETA_OF_CURVE}",
    )
    page.picture(
        "curve",
        "The three features (thin), the output (thick) and the thirteen points, before the "
        "features are learned and after.",
        _draw_curve,
    )


def is_separated(net: Network, x: Tensor, t: Tensor) -> bool:
    """Return whether the model of two classes has each example on its own side."""
    return bool(((2 * t - 1) * net.predict(x) > 0).all())


def _draw_xor() -> Picture:
    x, t = xor()
    net = xor_network()
    net.descent(x, t, SGD(ETA)).run(UPDATES)
    picture = Picture(figsize=(8.0, 3.8), layout="constrained")
    panels: Any = picture.subplots(1, 2)
    seen = (
        (panels[0], net, x, (-0.5, 1.5), "x"),
        (panels[1], output_alone(net), learned_features(net, x), (-1.3, 1.3), "φ"),
    )
    for axes, model, points, (low, high), name in seen:
        line = torch.linspace(low, high, 150, dtype=torch.float64)
        y = model.predict(torch.cartesian_prod(line, line)).sigmoid().view(150, 150)
        axes.contourf(line, line, y.T, [0, 0.5, 1], colors=("tab:blue", "tab:orange"), alpha=0.2)
        for k, color in enumerate(("tab:blue", "tab:orange")):
            own = points[t.squeeze(1) == k]
            axes.plot(own[:, 0], own[:, 1], "o", color=color, label=f"t = {k}")
        axes.set(xlabel=f"{name}₁", ylabel=f"{name}₂", aspect="equal")
    panels[0].legend(loc="upper left")
    return picture


def _draw_curve() -> Picture:
    x, t = curve()
    grid = torch.linspace(-3.2, 3.2, 200, dtype=torch.float64).unsqueeze(1)
    picture = Picture(figsize=(8.0, 3.4), layout="constrained")
    panels: Any = picture.subplots(1, 2, sharey=True)
    net = curve_network()
    training = net.descent(x, t, SGD(ETA_OF_CURVE))
    for axes, updates in zip(panels, (0, UPDATES_OF_CURVE), strict=True):
        training.run(updates)
        features = learned_features(net, grid)
        axes.plot(grid, features, color="tab:gray", linewidth=0.8, label=["φ_j", "", ""])
        axes.plot(grid, net.predict(grid), color="tab:red", linewidth=2, label="y")
        axes.plot(x, t, "ko", markersize=4, label="t")
        axes.set(xlabel="x", title=f"after {updates} updates")
    panels[1].legend(fontsize="small")
    return picture
