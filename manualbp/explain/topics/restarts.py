"""Several beginnings: where a descent ends depends on where it began."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import numbers, xor_descent
from manualbp.explain.networks import float64
from manualbp.explain.page import Page
from manualbp.explain.pictures import charts
from manualbp.explain.registry import topic
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD, descend
from manualbp.training.descent import Descent

STARTS = len(setting("XOR221")["inits"])
EPOCHS = 2000
"""For the table of all six; the lecture's numbers are those of 10,000."""
WELL_ETA = setting("DOUBLE_WELL")["eta"]


def xor_from(start: int) -> Descent:
    """Return the offline training of the XOR network from one of the listed beginnings."""
    return xor_descent(start, SGD(setting("XOR221")["eta"]))


@dataclass(frozen=True)
class Ending:
    """Where a training from one beginning has come."""

    start: int
    error: float
    outputs: Tensor  # (4,), for 00, 01, 10, 11
    gradient_norm: float  # |∂E/∂w|


def ending(start: int, training: Descent) -> Ending:
    """Return how a training stands."""
    gradient = numbers(training.gradients())
    return Ending(
        start, training.error(), training.outputs().flatten(), float(gradient.dot(gradient).sqrt())
    )


def xor_ending(start: int, epochs: int) -> Ending:
    """Train from one of the listed beginnings and return where it has come."""
    training = xor_from(start)
    training.run(epochs)
    return ending(start, training)


def best(endings: list[Ending]) -> Ending:
    """Return the one with the smallest error."""
    return min(endings, key=lambda one: one.error)


def double_well(w: Tensor) -> Tensor:
    """Return E = w⁴ - 2 w² + 0.3 w, which has a minimum on each side of 0."""
    return w**4 - 2 * w**2 + 0.3 * w


def double_well_gradient(w: Tensor) -> Tensor:
    """Return dE/dw = 4 w³ - 4 w + 0.3."""
    return 4 * w**3 - 4 * w + 0.3


def well_path(start: float, updates: int = 200) -> Tensor:
    """Return the points on the way down from `start`."""
    return descend(SGD(WELL_ETA), double_well_gradient, float64([start]), updates).flatten()


@topic("restarts", "Restarts, local minima and plateaus", "R35")
def restarts(page: Page) -> None:
    """Show a local minimum with one weight, and plateaus of the XOR network with nine."""
    _well(page)
    _xor(page)


def _well(page: Page) -> None:
    page.heading("A local minimum")
    page.say(
        """E = w⁴ - 2 w² + 0.3 w has two valleys. Descent knows only the slope where it stands, so
        it ends in the valley in which it begins. η = 0.05, 200 steps."""
    )
    for start, expected in zip((1.0, -1.0), figure("Z.local_minimum").value, strict=True):
        w = well_path(start)[-1]
        page.line(
            f"w from {start:+g}",
            "w - η (4 w³ - 4 w + 0.3), 200 times",
            w,
            equals=expected[0],
            because="the figure Z.local_minimum",
        )
        page.line(
            "E",
            "w⁴ - 2 w² + 0.3 w",
            double_well(w),
            numbers=f"({w:.4f})⁴ - 2 ({w:.4f})² + 0.3 ({w:.4f})",
            equals=expected[1],
            because="the figure Z.local_minimum",
        )
        page.line(
            "dE/dw",
            "4 w³ - 4 w + 0.3",
            double_well_gradient(w),
            equals=0.0,
            because="a minimum",
            absolute=1e-12,
        )
    ends = [float(double_well(well_path(start)[-1])) for start in (1.0, -1.0)]
    page.claim(
        "Both are minima, and only the left one is the lowest point: the other is local.",
        ends[1] < ends[0],
        f"E = {ends[1]:.4f} against {ends[0]:.4f}",
    )
    page.picture("local-minimum", "Two beginnings, two valleys", _draw_well)


def _xor(page: Page) -> None:
    page.heading("Six beginnings of the XOR network")
    page.say(
        f"""Two hidden units and one output, sigmoid, η = 0.5, offline with the sum of the
        gradients. Six random beginnings, {EPOCHS:,} epochs each; nothing else differs."""
    )
    trainings = [xor_from(start) for start in range(STARTS)]
    for training in trainings:
        training.run(EPOCHS)
    endings = [ending(start, training) for start, training in enumerate(trainings)]
    page.table(
        ("start", "E", "o(00)", "o(01)", "o(10)", "o(11)", "|∂E/∂w|"),
        [(one.start, one.error, *map(float, one.outputs), one.gradient_norm) for one in endings],
    )
    stuck = [one.start for one in endings if one.error > 0.2]
    page.claim(
        """Two of six get stuck, where two of the four patterns keep an output of about 0.5; the
        others solve XOR.""",
        stuck == [0, 1] and all(one.error < 0.02 for one in endings[2:]),
        f"E > 0.2 from the starts {stuck}",
    )
    page.say(
        """Is that a local minimum? The gradient there is small but not zero, and E still falls: it
        is a plateau, on which E creeps towards 0.25."""
    )
    page.given(
        "E and |∂E/∂w|",
        figure("Z.restarts.long").value,
        "of the starts 0 and 1 after 100,000 epochs, too long for a page: still no way down",
    )
    index: int = figure("Z.restarts.best").value[0]
    error: float = figure("Z.restarts.best").value[1]
    page.claim(
        f"Start {index} is the best of the six, as it will be after 10,000 epochs.",
        best(endings).start == index,
    )
    trainings[index].run(10_000 - EPOCHS)
    page.line(
        "E",
        "½ Σ_d (t_d - o_d)²",
        trainings[index].error(),
        equals=error,
        because="the figure Z.restarts.best",
        tolerance=1e-6,
    )
    page.line(
        "o(00), o(01), o(10), o(11)",
        "",
        trainings[index].outputs().flatten(),
        equals=figure("Z.restarts").value[index][1:],
        because="the figure Z.restarts",
        tolerance=1e-6,
    )
    page.say(
        """So one trains from several beginnings and keeps the best. A convex error needs none of
        this: logistic regression ends at the same weights from wherever it begins."""
    )
    page.picture("restarts", "E of the six beginnings", _draw_xor)


def _draw_well() -> Picture:
    picture, (left, right) = charts(2, 9, 3.6)
    w = torch.linspace(-1.6, 1.5, 200)
    left.plot(w.numpy(), double_well(w).numpy(), color="0.6")
    for start, colour in ((1.45, "C0"), (0.3, "C0"), (-0.2, "C1"), (-1.55, "C1")):
        path = well_path(start)
        left.plot(path.numpy(), double_well(path).numpy(), ".-", color=colour, markersize=4)
        left.plot(path[0], double_well(path[0]), "o", color=colour)
        right.plot(path[:41].numpy(), color=colour)
    left.set(xlabel="w", ylabel="E = w⁴ - 2 w² + 0.3 w", title="Two valleys")
    right.set(xlabel="step", ylabel="w", title="Where four beginnings end")
    return picture


def _draw_xor() -> Picture:
    picture, (left, right) = charts(2, 10, 3.8)
    every = 20
    for start in range(STARTS):
        training, errors = xor_from(start), list[float]()
        for _ in range(EPOCHS // every):
            errors.append(training.error())
            training.run(every)
        left.plot(range(0, EPOCHS, every), errors, label=f"start {start}")
        right.plot(range(4), training.outputs().flatten().numpy(), "o", label=f"start {start}")
    left.axhline(0.25, color="0.8", zorder=0)
    left.set(xlabel="epoch", ylabel="E", title="XOR from six beginnings")
    left.legend(fontsize="small")
    right.set_xticks(range(4), ["00", "01", "10", "11"])
    right.set(ylabel="output", title=f"Outputs after {EPOCHS:,} epochs", ylim=(0, 1))
    return picture
