"""Logistic regression: one linear layer, a sigmoid or softmax, and the cross-entropy.

Sigmoid and softmax are inside the losses, which take the logits a.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.checks.differences import central_differences
from manualbp.errors import UsageError
from manualbp.explain.examples import features, linear_model, rows
from manualbp.explain.networks import Network, float64, nested
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.layers import Linear, Sequential, Sigmoid, Softmax
from manualbp.lectures import figure, setting
from manualbp.losses import BCEWithLogitsLoss, CrossEntropyLoss
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters

TWO_CLASSES = BCEWithLogitsLoss("sum")
"""E = -Σ_n [t_n ln y_n + (1 - t_n) ln(1 - y_n)],  y_n = σ(a_n)."""
K_CLASSES = CrossEntropyLoss(reduction="sum")
"""E = -Σ_n Σ_k t_nk ln y_nk,  y_nk = e^a_nk / Σ_j e^a_nj."""

STARTS = ((0.0, 0.0), (-2.0, 3.0))
"""Points (w_0, w_1) from which gradient descent is shown."""
DRAWN = 150
"""Points of each descent in the picture of the error surface."""

ROUNDING = 1e-13
"""Relative changes below this are the last digits of a float64."""


def two_classes() -> tuple[Tensor, Tensor]:
    """Return the example with two classes: x (6, 1), t (6, 1)."""
    data = setting("LOGREG2")
    return float64(data["x"]).unsqueeze(1), float64(data["t"]).unsqueeze(1)


def three_classes() -> tuple[Tensor, Tensor]:
    """Return the example with three classes: x (7, 2), class indices (7,)."""
    data = setting("LOGREGK")
    return float64(data["x"]), torch.tensor(data["t"])


def logistic(*w: float) -> Network:
    """Return two-class logistic regression with the weights w = (w_0, w_1, ...)."""
    return linear_model(float64([w]), TWO_CLASSES)


def maximum_likelihood(x: Tensor, t: Tensor) -> Network:
    """Return two-class logistic regression with the weights at which the gradient is 0.

    Newton's method: w ← w - H⁻¹ ∇E with ∇E = Σ_n (y_n - t_n) φ_n and the curvature
    H = Σ_n y_n (1 - y_n) φ_n φ_nᵀ, from w = 0 until w stays; a step that raises E is halved.
    Shapes: x (N, I), t (N, 1). Raises UsageError if the classes are separable: once every example
    is on its side, a longer w lowers E for ever, and there is no such point.
    Source: Bishop 2006, section 4.3.3.
    """
    phi = features(x)
    net, moved = logistic(*[0.0] * phi.shape[1]), True
    while moved:
        a, w = net.predict(x), rows(net.params)
        if ((2 * t - 1) * a > 0).all():
            raise UsageError("the classes are separable: the likelihood has no maximum")
        y = a.sigmoid()
        H = (phi * y * (1 - y)).T @ phi
        step = rows(net.gradient(x, t)) @ H.inverse()
        limit = net.error(x, t) * (1 + ROUNDING)
        while linear_model(w - step, net.loss).error(x, t) > limit:
            step = step / 2
        net = linear_model(w - step, net.loss)
        moved = bool(step.abs().max() > ROUNDING * w.abs().max())
    return net


def right(net: Network, x: Tensor, classes: Tensor) -> int:
    """Return for how many examples the class with the largest logit is the right one."""
    return int((net.predict(x).argmax(1) == classes).sum())


def error_surface(w0: Sequence[float], w1: Sequence[float]) -> Tensor:
    """Return E(w_0, w_1) of the example with two classes, a row for each w_0."""
    x, t = two_classes()
    return float64([[logistic(a, b).error(x, t) for b in w1] for a in w0])


def separable_descent(updates: Sequence[int]) -> list[list[float]]:
    """Return [n, w, E] after each of these numbers n of updates on data that a point separates."""
    data = setting("LOGREG_SEP")
    x, t = float64(data["x"]).unsqueeze(1), float64(data["t"]).unsqueeze(1)
    model = Sequential(Linear(1, 1, bias=False))
    net = Network(model, Parameters.zeros(model.shapes(), dtype=torch.float64), TWO_CLASSES)
    training = net.descent(x, t, SGD(data["eta"]))
    found: list[list[float]] = []
    made = 0
    for n in updates:
        training.run(n - made)
        made = n
        found.append([n, float(net.matrices[0]), net.error(x, t)])
    return found


@topic("logistic-regression", "Logistic regression with two classes and with K", "R18", "R19")
def _logistic_regression(page: Page) -> None:
    _two_classes(page)
    _maximum(page)
    _separable(page)
    _k_classes(page)


def _two_classes(page: Page) -> None:
    x, t = two_classes()
    net = logistic(0.0, 0.0)
    phi = features(x)

    page.heading("Two classes: the model and its error")
    page.say(
        """Six numbers x belong to class 1 (t = 1) or to class 0 (t = 0). The model weighs the
        features φ = (1, x), where the 1 carries the bias, and turns the sum into a probability:
        y = σ(a) with a = Σ_i w_i φ_i. Its error is the cross-entropy, minus the log of the
        probability that the model gives to what was observed."""
    )
    page.line(
        "y_n at w = (0, 0)",
        "σ(w_0 + w_1 x_n)",
        net.predict(x).sigmoid().flatten(),
        numbers="σ(0)",
        equals=[0.5] * 6,
        because="σ(0) = 1/2",
    )
    page.line(
        "E at w = (0, 0)",
        "-Σ_n [t_n ln y_n + (1 - t_n) ln(1 - y_n)]",
        net.error(x, t),
        numbers="6 ln 2",
        figure="D.logreg.E0",
    )

    page.heading("The gradient")
    page.say(
        """For one example the chain rule has three factors, and most of it cancels:
        ∂E/∂y = (y - t) / (y (1 - y)), then dy/da = y (1 - y), then ∂a/∂w_i = φ_i. What is left is
        the error y - t times the feature. In matrix form that is Φᵀ(y - t)."""
    )
    page.line(
        "∂E/∂w_i at w = (0, 0)",
        "Σ_n (y_n - t_n) φ_ni",
        rows(net.gradient(x, t)).flatten(),
        numbers="(½ + ½ - ½ + ½ - ½ - ½, -1 - ½ - 0 + ½ - 1 - 3/2)",
        figure="D.logreg.grad0",
    )
    w = float64([[0.3, -0.2]])
    net = linear_model(w, TWO_CLASSES)
    a = net.predict(x)
    y = a.sigmoid()
    columns = (x, t, a, y, y - t, (y - t) * x)
    page.table(
        ("x", "t", "a", "y", "y - t", "(y - t) x"),
        nested(torch.cat(columns, 1)),
        "At w = (0.3, -0.2): the last two columns add up to the gradient",
    )
    found = rows(net.gradient(x, t))
    page.line(
        "∂E/∂w_i",
        "Σ_n (y_n - t_n) φ_ni",
        found.flatten(),
        figure="D.logreg.grad1",
    )
    page.line(
        "∂E/∂w",
        "Φᵀ(y - t)",
        (phi.T @ (y - t)).flatten(),
        equals=found.flatten(),
        because="the layers' backward pass",
    )
    page.line(
        "∂E/∂w_i",
        "Σ_n (y_n - t_n) φ_ni",
        found.flatten(),
        equals=central_differences(
            lambda: float64(linear_model(w, TWO_CLASSES).error(x, t)), w, float64(1.0)
        ).flatten(),
        because="the slope of the error surface, by central differences",
        tolerance=1e-8,
    )


def _maximum(page: Page) -> None:
    x, t = two_classes()
    best = maximum_likelihood(x, t)
    w = rows(best.params)

    page.heading("The point of maximum likelihood")
    page.say(
        """The lecture writes "maximum likelihood solution" beside the gradient. The solution is
        the w at which this gradient is zero, and no formula gives it: one has to go there step by
        step. Newton's method, which divides the gradient by the curvature, needs a handful of
        steps; gradient descent needs more and knows less."""
    )
    page.line(
        "(w_0, w_1, E)",
        "arg min E and min E, by Newton's method",
        [*nested(w.flatten()), best.error(x, t)],
        equals=[*figure("D.logreg.ml").value[0], figure("D.logreg.ml").value[1]],
        because="the figure D.logreg.ml",
    )
    largest = float(best.gradient(x, t).flat.abs().max())
    page.claim(
        "There the gradient is zero but for rounding.",
        largest < 1e-12,
        f"max |∂E/∂w| = {largest:.1e}",
    )
    for start in STARTS:
        net = logistic(*start)
        net.descent(x, t, SGD(0.1)).run(5000)
        page.line(
            f"w from {start}",
            "w - η Φᵀ(y - t), 5000 times with η = 0.1",
            rows(net.params),
            equals=w,
            because="Newton's method",
            tolerance=1e-10,
        )
    page.say(
        """Both starts lead to the same point, and any other would: the error of logistic
        regression is convex. The local minima that the lecture warns of belong to networks with
        hidden layers."""
    )

    page.heading("The error surface")
    page.say(
        """Over the two weights E is a bowl. Here are nine points of it, with w_0 = -1, 0, 1 in the
        rows and w_1 = 0, 1, 2 in the columns."""
    )
    page.line(
        "E(w_0, w_1)",
        "-Σ_n [t_n ln y_n + (1 - t_n) ln(1 - y_n)]",
        error_surface((-1, 0, 1), (0, 1, 2)),
        figure="D.surface",
    )
    page.picture(
        "surface",
        "The error of the six examples over the two weights, with the first 150 points of "
        "gradient descent (η = 0.1) from two starts. Both lead where the gradient is zero.",
        _draw_surface,
    )


def _separable(page: Page) -> None:
    page.heading("Separable data: no solution")
    page.say(
        """Take x = -1 of class 0 and x = +1 of class 1, and y = σ(w x) without bias. Every w > 0
        puts both on the right side, and a larger w makes the model surer of it:
        E = 2 ln(1 + e^-w) falls for ever. Gradient descent never arrives; w grows like the
        logarithm of the number of updates."""
    )
    steps = [1, 10, 100, 1000, 10000]
    found = separable_descent(steps)
    expected = figure("D.logreg.separable").value
    page.table(
        ("updates n", "w", "E", "ln 2n"),
        [(int(n), w, E, log(2 * n)) for n, w, E in found],
        "Gradient descent with η = 1 from w = 0",
    )
    for column, name, equation in (
        (1, "w_n", "w_(n-1) + 2η / (1 + e^w_(n-1))"),
        (2, "E_n", "2 ln(1 + e^-w_n)"),
    ):
        page.line(
            name,
            equation,
            [row[column] for row in found],
            equals=[row[column] for row in expected],
            because="the figure D.logreg.separable",
        )
    n, w, _ = found[-1]
    page.claim(
        "After 10,000 updates w is ln 2n to one part in 10,000, and still grows.",
        abs(w / log(2 * n) - 1) < 1e-4,
        f"w = {w:.6f}, ln 20000 = {log(2 * n):.6f}",
    )
    page.picture(
        "separable",
        "Where a point separates the classes, the weight grows and the error falls without end.",
        _draw_separable,
    )


def _k_classes(page: Page) -> None:
    x, t = three_classes()
    net = linear_model(torch.zeros(3, 3, dtype=torch.float64), K_CLASSES)

    page.heading("K classes: the model and its error")
    page.say(
        """Now each class k has weights w_k of its own and a logit a_k = Σ_i w_ki φ_i, and the
        softmax turns the K logits into probabilities: y_k = e^a_k / Σ_j e^a_j. The example has
        seven points in the plane, φ = (1, x_1, x_2), and three classes; t_nk is 1 for the class
        of example n and else 0."""
    )
    page.line(
        "E at W = 0",
        "-Σ_n Σ_k t_nk ln y_nk",
        net.error(x, t),
        numbers="7 ln 3",
        figure="D.logregK.E0",
    )
    page.say(
        """The gradient has the same form as before, error times feature, once for each class j:
        in matrix form (Y - T)ᵀΦ, with a row for each class. Its columns sum to 0, because the
        probabilities of an example sum to 1, and so do its targets."""
    )
    found = rows(net.gradient(x, t))
    page.line(
        "∂E/∂w_ji at W = 0",
        "Σ_n (y_nj - t_nj) φ_ni",
        found,
        figure="D.logregK.grad0",
    )
    total = float(found.sum(0).abs().max())
    page.claim(
        "The classes' gradients sum to 0.", total < 1e-14, f"max |Σ_j ∂E/∂w_ji| = {total:.1e}"
    )

    page.heading("A hundred updates")
    data = setting("LOGREGK")
    net.descent(x, t, SGD(data["eta"])).run(100)
    page.line(
        "W",
        "W - η (Y - T)ᵀΦ, 100 times with η = 0.1",
        rows(net.params),
        figure="D.logregK.W100",
    )
    page.line("E", "E = -Σ_n Σ_k t_nk ln y_nk", net.error(x, t), figure="D.logregK.E100")
    page.line(
        "right of 7",
        "Σ_n [argmax_k y_nk is the class of n]",
        right(net, x, t),
        figure="D.logregK.acc100",
    )
    page.picture(
        "classes",
        "The seven points and the regions of the three classes after 100 updates. Where two "
        "classes have the same logit the boundary is a straight line.",
        _draw_classes,
    )

    page.heading("Two classes are K = 2")
    page.say(
        """With two classes only the difference of the logits counts:
        e^a_1 / (e^a_1 + e^a_2) = 1 / (1 + e^-(a_1 - a_2)) = σ(a_1 - a_2)."""
    )
    a = torch.randn(4, 2, generator=torch.Generator().manual_seed(page.seed), dtype=torch.float64)
    nothing = Parameters.zeros({}).views
    page.given("(a_1, a_2)", a, "drawn from the seed")
    page.line(
        "y_1",
        "e^a_1 / (e^a_1 + e^a_2)",
        Softmax().forward(nothing, a)[0][:, 0],
        equals=Sigmoid().forward(nothing, a[:, 0] - a[:, 1])[0],
        because="σ(a_1 - a_2)",
    )


def _draw_surface() -> Picture:
    x, t = two_classes()
    w0 = nested(torch.linspace(-3.0, 1.5, 46))
    w1 = nested(torch.linspace(-1.0, 4.0, 46))
    picture = Picture(figsize=(6.4, 4.8), layout="constrained")
    axes: Any = picture.subplots()
    levels = [2.5, 2.6, 2.8, 3.2, 4, 5, 7, 10, 14]
    axes.clabel(axes.contour(w0, w1, error_surface(w0, w1).T, levels=levels), fontsize=7)
    for start, color in zip(STARTS, ("tab:red", "tab:orange"), strict=True):
        net = logistic(*start)
        training = net.descent(x, t, SGD(0.1))
        path: list[list[float]] = []
        for _ in range(DRAWN):
            path.append(nested(rows(net.params).flatten()))
            training.run(1)
        axes.plot(*zip(*path, strict=True), "o-", color=color, markersize=2.5, linewidth=1)
    best = nested(rows(maximum_likelihood(x, t).params).flatten())
    axes.plot(*best, "k*", markersize=11, label="maximum likelihood")
    axes.set(xlabel="w₀ (bias)", ylabel="w₁", title="E(w₀, w₁) and two descents")
    axes.legend(loc="lower right")
    return picture


def _draw_separable() -> Picture:
    steps = sorted({round(10 ** (k / 8)) for k in range(29)})
    n, w, E = zip(*separable_descent(steps), strict=True)
    picture = Picture(figsize=(7.2, 3.4), layout="constrained")
    axes: Any = picture.subplots(1, 2)
    axes[0].semilogx(n, w, "o-", markersize=3, label="w")
    axes[0].semilogx(n, [log(2 * k) for k in n], "--", label="ln 2n")
    axes[0].set(xlabel="updates n", ylabel="w")
    axes[0].legend()
    axes[1].loglog(n, E, "o-", markersize=3)
    axes[1].set(xlabel="updates n", ylabel="E")
    return picture


def _draw_classes() -> Picture:
    x, t = three_classes()
    net = linear_model(torch.zeros(3, 3, dtype=torch.float64), K_CLASSES)
    net.descent(x, t, SGD(setting("LOGREGK")["eta"])).run(100)
    first, second = torch.linspace(-0.7, 3.7, 200), torch.linspace(-0.7, 3.7, 200)
    grid = torch.cartesian_prod(first, second).double()
    regions = net.predict(grid).argmax(1).view(200, 200)
    picture = Picture(figsize=(5.2, 4.8), layout="constrained")
    axes: Any = picture.subplots()
    colors = ("tab:blue", "tab:orange", "tab:green")
    axes.contourf(first, second, regions.T, [-0.5, 0.5, 1.5, 2.5], colors=colors, alpha=0.2)
    for k, color in enumerate(colors):
        axes.plot(*x[t == k].T, "o", color=color, label=f"class {k}")
    axes.set(xlabel="x₁", ylabel="x₂")
    axes.legend()
    return picture
