"""The learning rate: too small, just right, too large; its exact limit; chosen by trying out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import linear_neuron, worked_example_descent
from manualbp.explain.networks import float64
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart, charts
from manualbp.explain.registry import topic
from manualbp.explain.topics.update_rules import bowl_gradient
from manualbp.lectures import figure, setting
from manualbp.losses import MSELoss
from manualbp.optimizers import SGD, descend

PARABOLA_CURVATURE = 4.0
PARABOLA_RATES = {
    0.001: "too small: it creeps",
    0.25: "1/curvature: there in one step",
    0.45: "to and fro, closer each time",
    0.5: "2/curvature: to and fro for ever",
    0.55: "too large: farther each time",
}
NETWORK_RATES = (0.005, 0.05, 0.5, 5.0, 50.0, 500.0)
FOLDS = 4


def parabola_path(eta: float, updates: int = 20) -> Tensor:
    """Return w(0) = 1, w(1), ... on E = 2 w² at the rate η."""
    start = float64([1.0])
    return descend(SGD(eta), lambda w: PARABOLA_CURVATURE * w, start, updates).flatten()


def network_after(eta: float, updates: int = 1000) -> tuple[float, float, float]:
    """Return E, o1 and o2 of the worked 2-2-2 network after so many updates at the rate η."""
    training = worked_example_descent(SGD(eta))
    training.run(updates)
    (o1, o2) = training.outputs()[0]
    return training.error(), float(o1), float(o2)


@dataclass(frozen=True)
class RateScore:
    """How well a rate does on each fold, by an online linear neuron that has not seen it."""

    eta: float
    folds: list[float]  # mean squared error on each

    @property
    def mean(self) -> float:
        """Return the mean over the folds."""
        return sum(self.folds) / len(self.folds)


def validation_errors(eta: float, epochs: int = 20) -> RateScore:
    """Train on three folds and measure on the fourth, four times over.

    The neuron y = w0 + w1 x begins at 0 and learns online, in the listed order, from the points
    whose place, counted from 0, leaves another rest by 4 than the fold's number.
    """
    example = setting("CV")
    points = torch.stack([torch.ones(12, dtype=torch.float64), float64(example["x"])], 1)
    targets = float64(example["d"]).unsqueeze(1)
    place = torch.arange(len(points))
    found: list[float] = []
    for fold in range(FOLDS):
        held_out = place % FOLDS == fold
        net = linear_neuron([0.0, 0.0])
        training = net.descent(points[~held_out], targets[~held_out], SGD(eta), batch_size=1)
        training.run(epochs)
        error, _ = MSELoss().forward(net.predict(points[held_out]), targets[held_out])
        found.append(float(error))
    return RateScore(eta, found)


def best_rate(scores: Sequence[RateScore]) -> float:
    """Return the rate with the smallest mean validation error."""
    return min(scores, key=lambda score: score.mean).eta


@topic("learning-rates", "Learning rates: too small, just right, too large", "R33")
def learning_rates(page: Page) -> None:
    """Show the regimes on a parabola, their limit on a bowl, and then on a network."""
    _parabola(page)
    _bowl(page)
    _network(page)


def _parabola(page: Page) -> None:
    page.heading("One weight on a parabola")
    page.say(
        """E = 2 w² has the slope ∂E/∂w = 4 w and the curvature 4. So w ← w - η 4 w = (1 - 4 η) w:
        each step multiplies w by the same number, and everything hangs on its size."""
    )
    after = [float(parabola_path(eta)[20].abs()) for eta in PARABOLA_RATES]
    for eta, expected in zip(PARABOLA_RATES, figure("Z.eta.quad").value, strict=True):
        factor = 1 - PARABOLA_CURVATURE * eta
        page.line(
            f"w(20), η = {eta}",
            "(1 - 4 η)^20 w(0)",
            parabola_path(eta)[20],
            numbers=f"({factor:.3g})^20 · 1",
            equals=expected,
            because="the figure Z.eta.quad",
        )
    page.table(
        ("η", "1 - 4 η", "|w| after 20 steps", "what it does"),
        [
            (eta, 1 - PARABOLA_CURVATURE * eta, size, words)
            for (eta, words), size in zip(PARABOLA_RATES.items(), after, strict=True)
        ],
    )
    below, at, above = (float(parabola_path(eta, 1000)[1000].abs()) for eta in (0.495, 0.5, 0.505))
    page.claim(
        """The limit is 2/curvature = 0.5, exactly: there |w| stays 1 for ever, and a hundredth
        below or above it w vanishes or explodes.""",
        at == 1 and below < 1e-4 and above > 1e4,
        f"|w(1000)| at 0.495, 0.5 and 0.505: {below:.1e}, {at:g} and {above:.1e}",
    )
    page.picture(
        "learning-rates-parabola", "Eight steps on E = 2 w² at each of the five rates", _draw
    )


def _bowl(page: Page) -> None:
    page.heading("Several weights: the steepest direction decides")
    page.say(
        """E = ½ (w1² + 10 w2²) has the curvatures 1 and 10, and each direction is a parabola of its
        own: w1 bears η < 2, but w2 only η < 2/10. One rate must serve both, so w1 waits for w2."""
    )
    start = float64([5.0, 1.0])
    for eta in (0.199, 0.2, 0.201):
        point = descend(SGD(eta), bowl_gradient, start, 1000)[1000]
        page.line(
            f"w_i(1000), η = {eta}",
            "(1 - η c_i)^1000 w_i(0), c = (1, 10)",
            point,
            equals=[(1 - eta) ** 1000 * 5, (1 - 10 * eta) ** 1000],
            because="the closed form",
            tolerance=1e-10,
        )


def _network(page: Page) -> None:
    usual = figure("Z.given.eta_usual")
    page.heading("The worked 2-2-2 network")
    page.say(
        f"""The lecture says that η is usually {usual.printed}. That depends on the curvature: here
        the error surface is flat, and after 1000 updates larger rates are far ahead, until at 500
        the first output has been thrown to 5e-21, where the slope of the sigmoid is as small, and
        no later step brings it back to its target 0.01. E, o1 and o2 after 1000 updates:"""
    )
    rows = [network_after(eta) for eta in NETWORK_RATES]
    for eta, row, expected in zip(NETWORK_RATES, rows, figure("Z.eta.222").value, strict=True):
        page.line(
            f"E, o1, o2 at η = {eta:g}",
            "",
            row,
            equals=expected[1:],
            because="the figure Z.eta.222",
        )
    errors = [row[0] for row in rows]
    page.claim(
        f"""The best of these rates is 50, a hundred times the usual upper limit of
        {usual.value:g}.""",
        NETWORK_RATES[errors.index(min(errors))] == 100 * float(usual.value),
        f"E = {min(errors):.2e}, against {errors[2]:.2e} at 0.5",
    )
    page.picture(
        "learning-rates-network", "E of the 2-2-2 network over 1000 updates", _draw_network
    )


@topic("cross-validation", "Choosing the rate by cross-validation", "R34")
def cross_validation(page: Page) -> None:
    """Try nine rates on four folds and choose."""
    example = setting("CV")
    page.say(
        """A rate that suits these examples should also suit others. So some are set aside: the
        twelve points are dealt into four folds, the points 0, 4, 8 into fold 0, the points 1, 5, 9
        into fold 1, and so on. For each fold a linear neuron y = w0 + w1 x learns from the other
        three, online, 20 epochs from w = 0, and is measured on the fold that it has not seen. The
        mean over the folds is the rate's score."""
    )
    page.given("x", example["x"])
    page.given("d", example["d"])
    scores = [validation_errors(eta) for eta in example["etas"]]
    for score, (eta, expected) in zip(scores, figure("Z.cv").value, strict=True):
        page.line(
            f"MSE, η = {eta:g}",
            "¼ Σ_f mean_{n in f} (y_n - d_n)²",
            score.mean,
            numbers="(" + " + ".join(f"{fold:.4g}" for fold in score.folds) + ") / 4",
            equals=expected,
            because="the figure Z.cv",
        )
    page.table(
        ("η", "fold 0", "fold 1", "fold 2", "fold 3", "mean"),
        [(f"{score.eta:g}", *score.folds, score.mean) for score in scores],
        title="Mean squared error on the fold that was left out",
    )
    chosen = best_rate(scores)
    runner_up = best_rate([score for score in scores if score.eta != chosen])
    page.line(
        "η",
        "argmin_η of the mean",
        chosen,
        equals=min(figure("Z.cv").value, key=lambda row: row[1])[0],
        because="the smallest of the figure Z.cv",
    )
    page.say(
        f"""Smaller rates have not arrived after 20 epochs, larger ones follow the noise of single
        points, and from 1.5 on they diverge. {runner_up:g} comes second. The score must come
        from points that had no part in the training."""
    )
    page.picture(
        "cross-validation", "Mean validation error of each rate, and of its folds", _draw_folds
    )


def _draw() -> Picture:
    picture, all_axes = charts(len(PARABOLA_RATES), 12, 3.4)
    for axes, (eta, words) in zip(all_axes, PARABOLA_RATES.items(), strict=True):
        path = parabola_path(eta, 8)
        reach = max(1.2, 1.05 * float(path.abs().max()))
        w = torch.linspace(-reach, reach, 101)
        axes.plot(w.numpy(), (2 * w**2).numpy(), color="0.7")
        axes.plot(path.numpy(), (2 * path**2).numpy(), "o-", markersize=4, linewidth=1)
        axes.set_title(f"η = {eta}\n{words}", fontsize="small")
        axes.set(xlabel="w")
    all_axes[0].set(ylabel="E = 2 w²")
    return picture


def _draw_network() -> Picture:
    picture, axes = chart()
    for eta in NETWORK_RATES:
        axes.loglog(
            range(1, 1001), worked_example_descent(SGD(eta)).errors(1000)[1:], label=f"{eta:g}"
        )
    axes.set(xlabel="update", ylabel="E", title="Worked 2-2-2 network")
    axes.legend(title="η", fontsize="small")
    return picture


def _draw_folds() -> Picture:
    picture, axes = chart()
    scores = [validation_errors(eta) for eta in setting("CV")["etas"] if eta <= 1]
    etas = [score.eta for score in scores]
    for fold in range(FOLDS):
        label = "single folds" if fold == 0 else None
        axes.loglog(etas, [score.folds[fold] for score in scores], ".:", color="0.6", label=label)
    axes.loglog(etas, [score.mean for score in scores], "o-", label="mean")
    best = best_rate(scores)
    axes.axvline(best, color="0.8", zorder=0)
    axes.annotate(f"  η = {best:g}", (best, max(score.mean for score in scores)))
    axes.set(xlabel="η", ylabel="mean squared error", title="Validation error over four folds")
    axes.legend()
    return picture
