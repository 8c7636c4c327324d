"""When to stop: every rule that the lectures name, on the same training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from matplotlib.figure import Figure as Picture

from manualbp.explain.examples import linear_neuron, numbers
from manualbp.explain.networks import float64
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart
from manualbp.explain.registry import topic
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD
from manualbp.training.descent import Descent
from manualbp.training.early_stopping import EarlyStopping, StopReason


@dataclass(frozen=True)
class Stopped:
    """How a rule ended a sequence of errors."""

    at: int  # the index of the last value that it has seen
    kept: int | None  # the index of the weights to keep
    reason: StopReason


def stop(rule: EarlyStopping, values: Sequence[float]) -> Stopped:
    """Let a rule look at one value after the other, the first with index 0, until it stops.

    Where it does not, all values are seen: that is the rule of a fixed number of epochs.
    """
    watching = replace(rule)
    for epoch, value in enumerate(values):
        decision = watching.update(epoch, value)
        if decision.reason:
            return Stopped(epoch, watching.best_epoch, decision.reason)
    return Stopped(len(values) - 1, watching.best_epoch, "max epochs")


@dataclass(frozen=True)
class Curves:
    """Errors before training and after each epoch, and the weights beside them."""

    train: list[float]
    val: list[float]
    weights: list[list[float]]


def early_descent() -> Descent:
    """Return the training of a linear neuron that learns a rule first and noise later."""
    example = setting("EARLY")
    x, d = float64(example["Xtrain"]), float64(example["dtrain"]).unsqueeze(1)
    return linear_neuron(example["w0"]).descent(x, d, SGD(example["eta"]))


def early_curves(epochs: int) -> Curves:
    """Return both errors, E = ½ Σ e² over two examples each, after 0, 1, ..., `epochs` epochs."""
    example = setting("EARLY")
    x, d = float64(example["Xval"]), float64(example["dval"]).unsqueeze(1)
    training = early_descent()
    curves = Curves([], [], [])
    for epoch in range(epochs + 1):
        if epoch:
            training.run(1)
        curves.train.append(training.error())
        curves.val.append(training.error_on(x, d))
        curves.weights.append([float(w) for w in numbers(training.params)])
    return curves


def closed_form(t: int) -> tuple[float, float, float]:
    """Return w1(t) = 1 - 0.8^t, w2(t) = ½ (1 - 0.998^t) and E_val = (w1 - 1)² + w2²."""
    w1, w2 = 1 - 0.8**t, 0.5 * (1 - 0.998**t)
    return w1, w2, (w1 - 1) ** 2 + w2**2


@topic("early-stopping", "When to stop", "R36")
def early_stopping(page: Page) -> None:
    """Show why one stops, then each rule for it."""
    page.say(
        """Two training examples share a rule, d = x1, and a little noise: +0.05 and -0.05, which
        the second input, 0.1 and -0.1, explains by accident. The validation examples have the rule
        without the noise. One linear neuron, offline, η = 0.1, from w = 0."""
    )
    curves = early_curves(1000)
    _curves(page, curves)
    _minimum(page, curves)
    _patience(page)
    _saturation(page, curves)
    _others(page, curves)
    page.picture("early-stopping", "Both errors, and where they part", _draw)


def _curves(page: Page, curves: Curves) -> None:
    page.heading("The two errors")
    page.say(
        """The rule lies along w1, where the slope is steep: the distance to 1 shrinks by 0.8 with
        each epoch. The noise lies along w2, where the slope is a hundred times as small: the
        distance to ½ shrinks by 0.998. So the rule is learned first and the noise later."""
    )
    for t in (1, 10, 100, 1000):
        page.line(
            f"w1, w2 at t = {t}",
            f"1 - 0.8^{t}, ½ (1 - 0.998^{t})",
            curves.weights[t],
            equals=closed_form(t)[:2],
            because="the closed form",
        )
    rows = [row for row in figure("Z.early.curve").value if row[0] <= 1000]
    page.line(
        f"E_train, E_val at t = {', '.join(str(int(t)) for t, _, _ in rows)}",
        "",
        [[curves.train[int(t)], curves.val[int(t)]] for t, _, _ in rows],
        equals=[row[1:] for row in rows],
        because="the figure Z.early.curve",
    )
    page.table(
        ("t", "w1", "w2", "E_train", "E_val"),
        [
            (t, *curves.weights[t], curves.train[t], curves.val[t])
            for t in (int(row[0]) for row in rows)
        ],
    )


def _minimum(page: Page, curves: Curves) -> None:
    t = min(range(len(curves.val)), key=curves.val.__getitem__)
    page.heading("Stop at the minimum of the validation error")
    page.line(
        "t, E_val, E_train at the minimum of E_val",
        "",
        [float(t), curves.val[t], curves.train[t]],
        figure="Z.early.min",
    )
    page.claim(
        "Meanwhile E_train falls with every single epoch: it would never say stop.",
        all(later < earlier for earlier, later in pairwise(curves.train)),
        f"from {curves.train[0]:.4g} down to {curves.train[-1]:.3g}",
    )
    page.say(
        """That a minimum is the minimum shows only afterwards. So one waits: stop when E_val has
        not improved for a number of epochs, the patience, and go back to the best weights."""
    )
    stopped = stop(EarlyStopping(patience=5), curves.val)
    page.line(
        "stop, kept with patience 5",
        "t + 5, t",
        [float(stopped.at), float(stopped.kept or 0)],
        equals=[t + 5.0, float(t)],
        because="the minimum found above",
    )


def _patience(page: Page) -> None:
    values = setting("PATIENCE")["E_val"]
    page.heading("How much patience?")
    page.given("E_val", values, "a validation error that goes up and down, epochs 0 to 9")
    rows: list[tuple[int, int, int | None, str]] = []
    for patience, expected in enumerate(figure("Z.early.patience").value, 1):
        stopped = stop(EarlyStopping(patience=patience), values)
        page.line(
            f"stop, kept with patience {patience}",
            "",
            [float(stopped.at), float(stopped.kept or 0)],
            equals=expected,
            because="the figure Z.early.patience",
        )
        rows.append((patience, stopped.at, stopped.kept, stopped.reason))
    page.table(("patience", "stops after", "keeps", "because"), rows)
    page.say(
        """Equal is no improvement: 0.69 after 0.69 counts as waiting. Little patience stops at the
        first bump, before 0.69 and before 0.6. What is kept are the weights of the best epoch, not
        the last ones."""
    )


def _saturation(page: Page, curves: Curves) -> None:
    page.heading("Stop when the error saturates")
    page.say(
        """Stop when an epoch changes the validation error by less than 1e-4. That is patience 1
        with 1e-4 as the least improvement that counts, min_delta."""
    )
    stopped = stop(EarlyStopping(patience=1, min_delta=1e-4), curves.val)
    page.line(
        "t",
        "the first with |E_val(t-1) - E_val(t)| < 1e-4",
        float(stopped.at),
        numbers=f"{curves.val[18]:.3e} - {curves.val[19]:.3e} = "
        f"{curves.val[18] - curves.val[19]:.2e}",
        figure="D.early.saturation",
    )
    on_training = stop(
        EarlyStopping(monitor="train_loss", patience=1, min_delta=1e-4), curves.train
    )
    page.line(
        "t on E_train",
        "the first with |E_train(t-1) - E_train(t)| < 1e-4",
        float(on_training.at),
        equals=float(
            next(t for t in range(1, 100) if curves.train[t - 1] - curves.train[t] <= 1e-4)
        ),
        because="looking it up in the curve",
    )


def _others(page: Page, curves: Curves) -> None:
    page.heading("The other rules")
    page.say(
        """A fixed number of epochs is the simplest rule; the others are never without it. Or the
        goal is known: stop when the error, or an accuracy, is as good as wanted. And a run that
        diverges, or is not a number any more, need not go on."""
    )
    goal = EarlyStopping(patience=None, stopping_threshold=0.01)
    accuracy = EarlyStopping(monitor="val_accuracy", patience=None, stopping_threshold=0.95)
    diverged = EarlyStopping(patience=None, divergence_threshold=10.0)
    ends = {
        "50 epochs": stop(EarlyStopping(patience=None), curves.val[:51]),
        "E_val ≤ 0.01": stop(goal, curves.val),
        "accuracy ≥ 0.95": stop(accuracy, [0.5, 0.9, 0.94, 0.95, 0.97]),
        "E_val > 10": stop(diverged, [1.0, 3.0, 9.0, 27.0, 81.0]),
        "not a number": stop(EarlyStopping(patience=None), [1.0, 50.0, float("nan"), 1.0]),
    }
    page.table(
        ("rule", "stops after", "keeps", "reason"),
        [(name, end.at, end.kept, end.reason) for name, end in ends.items()],
    )
    page.line(
        "t",
        "the first with E_val ≤ 0.01",
        float(ends["E_val ≤ 0.01"].at),
        equals=float(next(t for t, error in enumerate(curves.val) if error <= 0.01)),
        because="looking it up in the curve",
    )
    page.claim(
        """Each stops where it should: after the 50th epoch, at the first accuracy of 0.95, at the
        first error beyond 10, at the first value that is no number.""",
        [end.at for end in ends.values()] == [50, ends["E_val ≤ 0.01"].at, 3, 3, 2],
    )
    page.say(
        """On the command line: manualbp train has --max-epochs, --monitor, --patience and
        --min-delta."""
    )


def _draw() -> Picture:
    curves = early_curves(3000)
    picture, axes = chart()
    t = range(1, len(curves.val))
    axes.loglog(t, curves.train[1:], label="training error")
    axes.loglog(t, curves.val[1:], label="validation error")
    best = stop(EarlyStopping(patience=5), curves.val).kept or 0
    axes.plot(best, curves.val[best], "ko", markersize=5)
    axes.annotate(
        f"minimum, t = {best}",
        (best, curves.val[best]),
        textcoords="offset points",
        xytext=(0, -14),
        ha="center",
    )
    axes.set(xlabel="epoch t", ylabel="E", title="Rule first, noise later")
    axes.legend()
    return picture
