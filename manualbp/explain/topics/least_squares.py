"""Least squares as a classifier, beside logistic regression: far examples, and a masked class.

Both are the same linear layer. Least squares trains it with the squared error towards the targets
0 and 1, logistic regression with the cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.errors import UsageError
from manualbp.explain.examples import features, linear_model, rows
from manualbp.explain.networks import Network, float64, nested
from manualbp.explain.page import CLOSE, Page
from manualbp.explain.registry import topic
from manualbp.explain.topics.logistic_regression import K_CLASSES, maximum_likelihood, right
from manualbp.layers import Softmax
from manualbp.lectures import figure, setting
from manualbp.losses import HalfSquaredError
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters

OUTLIERS = ("without", "with")
ETA = 0.05
"""The rate of the softmax that finds the middle class."""


def least_squares(x: Tensor, t: Tensor) -> Network:
    """Return the linear layer with the smallest ½ Σ_n Σ_k (y_nk - t_nk)², found by torch's lstsq.

    It solves ΦᵀΦ Wᵀ = ΦᵀT, which says that the gradient Φᵀ(Y - T) is 0.
    Shapes: x (N, I), t (N, K).
    """
    solution = cast(Any, torch.linalg).lstsq(features(x), t).solution
    return linear_model(cast(Tensor, solution).T, HalfSquaredError())


@dataclass(frozen=True)
class Boundary:
    """A classifier of numbers x: class 1 where its output is above a threshold."""

    net: Network
    threshold: float  # of the output: ½ for least squares, 0 for a logit, where σ is ½

    @property
    def weights(self) -> tuple[float, float]:
        """Return w_0, w_1 of the output w_0 + w_1 x."""
        w0, w1 = nested(rows(self.net.params).flatten())
        return w0, w1

    @property
    def place(self) -> float:
        """Return the x at which w_0 + w_1 x is the threshold."""
        w0, w1 = self.weights
        return (self.threshold - w0) / w1

    def errors(self, x: Tensor, t: Tensor) -> int:
        """Return how many examples lie on the wrong side."""
        return int(((self.net.predict(x) > self.threshold) != (t == 1)).sum())


def overlapping(outliers: str) -> tuple[Tensor, Tensor]:
    """Return the example with two classes on a line, x (N, 1), t (N, 1).

    `outliers` is "with" or "without": three points of class 1 far out on the right side.
    """
    data = setting("LS_LR")
    ones = data["class1"] + (data["outliers_class1"] if outliers == "with" else [])
    x = float64([*data["class0"], *ones]).unsqueeze(1)
    t = float64([0.0] * len(data["class0"]) + [1.0] * len(ones)).unsqueeze(1)
    return x, t


@cache
def boundaries(outliers: str) -> tuple[Boundary, Boundary]:
    """Return the boundaries of least squares and of logistic regression."""
    x, t = overlapping(outliers)
    return Boundary(least_squares(x, t), 0.5), Boundary(maximum_likelihood(x, t), 0.0)


def three_on_a_line() -> tuple[Tensor, Tensor]:
    """Return the example with three classes side by side: x (12, 1), class indices (12,)."""
    groups = [setting("LS_MASK")[name] for name in "ABC"]
    classes = [k for k, group in enumerate(groups) for _ in group]
    return float64([x for group in groups for x in group]).unsqueeze(1), torch.tensor(classes)


def one_hot(classes: Tensor) -> Tensor:
    """Return T (N, K) with a 1 for the class of each example."""
    return torch.eye(int(classes.max()) + 1, dtype=torch.float64)[classes]


def softmax_until_right(x: Tensor, classes: Tensor, most: int = 10_000) -> tuple[Network, int]:
    """Train the softmax from W = 0 until every example is right; return it and the updates.

    Raises UsageError if that takes more than `most` updates.
    """
    start = torch.zeros(int(classes.max()) + 1, 1 + x.shape[1], dtype=torch.float64)
    net = linear_model(start, K_CLASSES)
    training = net.descent(x, classes, SGD(ETA))
    for updates in range(most + 1):
        if right(net, x, classes) == len(x):
            return net, updates
        training.run(1)
    raise UsageError(f"after {most} updates some examples are still wrong: more are needed")


@topic("least-squares-vs-logistic", "Least squares against logistic regression", "R20")
def _least_squares_vs_logistic(page: Page) -> None:
    page.say(
        """A linear layer can be trained to classify in two ways. Least squares fits its output
        w_0 + w_1 x to the targets 0 and 1 and says class 1 where it is above ½. Logistic
        regression takes it as a logit a and says class 1 where σ of it is above ½, that is, where
        it is above 0. The model is the same; the error is not, and two examples show what that
        does."""
    )
    _outliers(page)
    _masking(page)


def _outliers(page: Page) -> None:
    page.heading("Two classes, some far out")
    x, t = overlapping("without")
    page.given("x of class 0", setting("LS_LR")["class0"])
    page.given("x of class 1", setting("LS_LR")["class1"], "4.4 lies left of the other class's 4.6")
    page.given("x of class 1, far out", setting("LS_LR")["outliers_class1"], "added later")
    phi = features(x)
    page.say(
        """The gradient of ½ Σ (y_n - t_n)² is Φᵀ(Φw - t). It is 0 where ΦᵀΦ w = Φᵀt, two linear
        equations for w_0 and w_1. The gradient of logistic regression has y = σ(Φw) in
        it, and has to be followed down: Newton's method does so here."""
    )
    page.table(
        ("", "w_0", "w_1", "right side"),
        [
            ("equation 0", *nested((phi.T @ phi)[0]), float((phi.T @ t)[0])),
            ("equation 1", *nested((phi.T @ phi)[1]), float((phi.T @ t)[1])),
        ],
        "ΦᵀΦ w = Φᵀt without the far points",
    )
    for outliers in OUTLIERS:
        x, t = overlapping(outliers)
        both = boundaries(outliers)
        expected = figure(f"D.lslr.{outliers}").value
        page.say(f"{outliers.capitalize()} the far points:")
        names = ("least squares", "logistic")
        for k, (name, found) in enumerate(zip(names, both, strict=True)):
            equation = "(½ - w_0) / w_1" if k == 0 else "-w_0 / w_1"
            w0, w1 = found.weights
            because = f"the figure D.lslr.{outliers}"
            page.line(
                f"w, {name}",
                "(ΦᵀΦ)⁻¹ Φᵀt" if k == 0 else "the w at which Φᵀ(σ(Φw) - t) = 0",
                [w0, w1],
                equals=expected[3 * k],
                because=because,
            )
            page.line(
                f"boundary, {name}",
                equation,
                found.place,
                numbers=f"({0.5 - w0 if k == 0 else -w0:.6f}) / {w1:.6f}",
                equals=expected[3 * k + 1],
                because=because,
            )
            page.line(
                f"errors, {name}",
                "Σ_n [example n is on the wrong side]",
                found.errors(x, t),
                equals=expected[3 * k + 2],
                because=because,
            )
    page.say(
        """Three points that were right by a wide margin have moved the boundary of least squares,
        and cost it an example. The reason is in the errors y - t that drive the gradient. At a
        far point the output of least squares is far above 1: it is "too right", and that counts
        as an error. The sigmoid is 1 there to the last digit, and the far point has no say."""
    )
    x, t = overlapping("with")
    ls, logistic = boundaries("without")
    far = x > 10
    columns = (x, ls.net.predict(x) - t, logistic.net.predict(x).sigmoid() - t)
    page.table(
        ("x", "y - t, least squares", "y - t, logistic"),
        nested(torch.stack([column[far] for column in columns], 1)),
        "What the far points ask for, at the boundaries found without them",
    )
    page.picture(
        "outliers",
        "Outputs (black) and boundaries (red) of least squares (dashed) and logistic regression "
        "without and with three far points of class 1. Only the first moves.",
        _draw_outliers,
    )


def _masking(page: Page) -> None:
    x, classes = three_on_a_line()
    page.heading("Three classes in a row: the one in the middle is masked")
    for name, k in zip("ABC", range(3), strict=True):
        page.given(f"x of class {k}", setting("LS_MASK")[name])
    page.say(
        """Least squares now has an output for each class, with target 1 for its own examples and
        0 for the others, and the largest output wins. For the class in the middle the targets
        along x are 0, 1, 0, and the straight line that comes nearest to that is flat."""
    )
    net = least_squares(x, one_hot(classes))
    weights, predictions, updates = figure("D.mask").value
    page.line(
        "W",
        "(ΦᵀΦ)⁻¹ ΦᵀT, rows bias and slope, columns classes",
        rows(net.params).T,
        equals=weights,
        because="the figure D.mask",
    )
    page.say("(The slope of the middle column is 0 but for rounding.)")
    y = net.predict(x)
    page.table(
        ("x", "class", "y_0", "y_1", "y_2", "largest"),
        [
            (*row[:1], int(k), *row[1:], int(winner))
            for row, k, winner in zip(
                nested(torch.cat([x, y], 1)), classes, y.argmax(1), strict=True
            )
        ],
        "Outputs of least squares",
    )
    page.line(
        "classes found",
        "argmax_k y_nk",
        y.argmax(1),
        equals=predictions,
        because="the figure D.mask",
    )
    found = right(net, x, classes)
    page.claim(
        "Class 1 has ⅓ everywhere and wins nowhere: 8 of 12 are right, none of its own 4.",
        bool((y[:, 1] - 1 / 3).abs().max() < CLOSE) and found == 8 and not (y.argmax(1) == 1).any(),
        f"{found} of {len(x)} right",
    )
    net, made = softmax_until_right(x, classes)
    page.say(
        f"""The softmax has straight lines for logits as well, but only their order counts, and
        the cross-entropy does not ask them to be 0 or 1. Full-batch updates with η = {ETA} from
        W = 0 soon put each class where it belongs."""
    )
    page.line(
        "updates of the softmax",
        "the first number at which all 12 are right",
        made,
        equals=updates,
        because="the figure D.mask",
    )
    squared = torch.cat([x, x * x], 1)
    parabolas = right(least_squares(squared, one_hot(classes)), squared, classes)
    page.claim(
        """Least squares finds the middle class too when it is given the feature x² besides: its
        output can then be an arch.""",
        parabolas == len(x),
        f"φ = (1, x, x²): {parabolas} of {len(x)} right",
    )
    page.picture(
        "masking",
        "Left, the three straight outputs of least squares: the middle class is never the "
        "largest. Right, the probabilities of the softmax after a few updates.",
        _draw_masking,
    )


def _draw_outliers() -> Picture:
    picture = Picture(figsize=(8.0, 3.4), layout="constrained")
    panels: Any = picture.subplots(1, 2, sharey=True)
    for axes, outliers in zip(panels, OUTLIERS, strict=True):
        x, t = overlapping(outliers)
        least, logistic = boundaries(outliers)
        grid = torch.linspace(-1, float(x.max()) + 1, 400, dtype=torch.float64).unsqueeze(1)
        for k, color in enumerate(("tab:blue", "tab:orange")):
            axes.plot(x[t == k], t[t == k], "o", color=color, label=f"class {k}")
        for found, y, style, name in (
            (least, least.net.predict(grid), "--", "least squares"),
            (logistic, logistic.net.predict(grid).sigmoid(), "-", "logistic"),
        ):
            axes.plot(grid, y, style, color="black", linewidth=1, label=name)
            axes.axvline(found.place, color="tab:red", linestyle=style, linewidth=1)
        axes.set(xlabel="x", title=f"{outliers} the far points", ylim=(-0.4, 1.6))
    panels[0].set_ylabel("t and y")
    panels[1].legend(loc="center right", fontsize="small")
    return picture


def _draw_masking() -> Picture:
    x, classes = three_on_a_line()
    grid = torch.linspace(-7, 7, 200, dtype=torch.float64).unsqueeze(1)
    least = least_squares(x, one_hot(classes)).predict(grid)
    net, made = softmax_until_right(x, classes)
    nothing = Parameters.zeros({}).views
    softmax, _ = Softmax().forward(nothing, net.predict(grid))
    picture = Picture(figsize=(8.0, 3.4), layout="constrained")
    panels: Any = picture.subplots(1, 2, sharey=True)
    titles = ("least squares", f"softmax after {made} updates")
    for axes, y, title in zip(panels, (least, softmax), titles, strict=True):
        for k, color in enumerate(("tab:blue", "tab:orange", "tab:green")):
            axes.plot(grid, y[:, k], color=color, label=f"class {k}")
            own = x[classes == k]
            axes.plot(own, torch.full_like(own, -0.15), "o", color=color, markersize=4)
        axes.set(xlabel="x", title=title)
    panels[0].set_ylabel("y_k")
    panels[0].legend()
    return picture
