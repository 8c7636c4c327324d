"""When to update: after each example, after some, or after all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manualbp.explain.examples import (
    filled,
    linear_neuron,
    numbers,
    xor_descent,
)
from manualbp.explain.networks import Network, float64
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.layers import Linear, Sequential, Sigmoid
from manualbp.lectures import figure, setting
from manualbp.losses import HalfSquaredError, Reduction
from manualbp.optimizers import SGD
from manualbp.training.descent import Descent

XOR_START = 3
"""Which of the six listed beginnings of the XOR network the lecture's modes are compared on."""

MODES: dict[str, tuple[int, Reduction]] = {
    "online": (1, "sum"),
    "batch2": (2, "sum"),
    "offline_sum": (0, "sum"),
    "offline_mean": (0, "mean"),
}
"""Rows of an update, 0 for all, and how their gradients are put together."""

NAMES = {
    "online": "online",
    "batch2": "in pairs",
    "offline_sum": "offline, sum",
    "offline_mean": "offline, mean",
}

UPDATES = {
    "online": "w ← w - η ∂E_d/∂w, four times",
    "batch2": "w ← w - η (∂E_d/∂w + ∂E_{d+1}/∂w), twice",
    "offline_sum": "w - η Σ_d ∂E_d/∂w",
    "offline_mean": "w - η ¼ Σ_d ∂E_d/∂w",
}


def sigmoid_unit() -> tuple[Network, Tensor, Tensor]:
    """Return one sigmoid unit, and AND with a first input that is always 1, for its bias."""
    example = setting("SIGMOID_UNIT_AND")
    unit = filled(Sequential(Linear(3, 1, bias=False), Sigmoid()), example["w"])
    return unit, float64(example["X"]), float64(example["t"]).unsqueeze(1)


def xor_in_mode(mode: str) -> Descent:
    """Return the training of the XOR network with η = 0.5 in one of MODES."""
    batch_size, reduction = MODES[mode]
    eta = setting("XOR221")["eta"]
    loss = HalfSquaredError(reduction)
    return xor_descent(XOR_START, SGD(eta), batch_size=batch_size, loss=loss)


def neuron(
    x: Sequence[Sequence[float]],
    target: Sequence[float],
    eta: float,
    *,
    batch_size: int = 0,
    reduction: Reduction = "sum",
) -> Descent:
    """Return the training of a linear neuron that begins with weights of 0."""
    net = linear_neuron([0.0] * len(x[0]), HalfSquaredError(reduction))
    rule = SGD(eta)
    return net.descent(float64(x), float64(target).unsqueeze(1), rule, batch_size=batch_size)


def equal_patterns(eta: float, mode: str) -> Descent:
    """Return the neuron that sees x = 1, t = 1 four times in an epoch; its best weight is 1."""
    example = setting("SUMMEAN")
    batch_size, reduction = MODES[mode]
    x = [[number] for number in example["x"]]
    return neuron(x, example["d"], eta, batch_size=batch_size, reduction=reduction)


def noisy_targets(mode: str) -> Descent:
    """Return the neuron with x = 1 and two targets around 1, to which the best weight is 1."""
    example = setting("NOISE")
    batch_size, reduction = MODES[mode]
    x = [[number] for number in example["x"]]
    return neuron(x, example["d"], example["eta"], batch_size=batch_size, reduction=reduction)


def redundant_patterns(mode: str) -> Descent:
    """Return the neuron that sees the same four patterns five times in an epoch.

    E is the mean of ½ e² in both modes: over one row it is what the row has.
    """
    stream = setting("PORR_STREAM")
    eta = setting("REDUNDANT")["eta"]
    batch_size, _ = MODES[mode]
    x, target = stream["X"] * 5, stream["d"] * 5
    return neuron(x, target, eta, batch_size=batch_size, reduction="mean")


def weight_after(training: Descent, epochs: int) -> float:
    """Train, and return the neuron's first weight."""
    training.run(epochs)
    return float(numbers(training.params)[0])


@topic("online-and-batch", "Online, mini-batch and offline training", "R28")
def online_and_batch(page: Page) -> None:
    """Put the three modes side by side, then three claims of the lecture to the test."""
    page.say(
        """An epoch is one walk through all examples. The question is when to change the weights:
        after each example (online), after a few (mini-batch), or once at the end (offline, which
        the lecture's pseudo-code calls batch)."""
    )
    _one_unit(page)
    _xor(page)
    _rates(page)
    _noise(page)
    _faster(page)


def _one_unit(page: Page) -> None:
    unit, x, t = sigmoid_unit()
    training = unit.descent(x, t, SGD())
    o, g = training.outputs(), numbers(training.gradients())
    expected = figure("Z.sigmoid_unit").value
    because = "the figure Z.sigmoid_unit"
    page.heading("The error of a set, and its gradient")
    page.say(
        """One sigmoid unit learns AND. Its first input is always 1, so the first weight is the
        bias. The error of a set of examples d is a sum, and so is its gradient."""
    )
    page.given("w", numbers(unit.params))
    page.line("o_d", "o_d = σ(Σ_i w_i x_i,d)", o.flatten(), equals=expected[0], because=because)
    page.line(
        "E",
        "E = ½ Σ_d (t_d - o_d)²",
        training.error(),
        numbers=f"½ [(0 - {o[0, 0]:.4f})² + ... + (1 - {o[3, 0]:.4f})²]",
        equals=expected[1],
        because=because,
    )
    page.line(
        "∂E/∂w_i",
        "∂E/∂w_i = -Σ_d (t_d - o_d) o_d (1 - o_d) x_i,d",
        g,
        equals=expected[2],
        because=because,
    )
    one_by_one = [unit.descent(x[d : d + 1], t[d : d + 1], SGD()) for d in range(len(x))]
    page.line(
        "Σ_d ∂E_d/∂w_i",
        "∂E/∂w_i, as E = Σ_d E_d",
        torch.stack([numbers(single.gradients()) for single in one_by_one]).sum(0),
        equals=g,
        because="the gradient of the whole set, in one pass",
    )


def _xor(page: Page) -> None:
    page.heading("One epoch of XOR in four ways")
    page.say(
        """Two hidden units, one output, all sigmoid, η = 0.5, the patterns in the order 00, 01, 10,
        11. Online makes four updates, each from the weights that the one before has left. Pairs
        make two. Offline makes one, with the sum of all four gradients, or with their mean, which
        is the same as the sum at a quarter of the rate."""
    )
    first = xor_in_mode("online")
    page.line("E before training", "½ Σ_d (t_d - o_d)²", first.error(), figure="Z.modes.E0")
    page.say("The weights stand in the order w11 w12 w21 w22 b1 b2, and v1 v2 b of the output.")
    page.line(
        "∂E/∂w",
        "-Σ_d (t_d - o_d) o_d (1 - o_d) ∂net_d/∂w",
        numbers(first.gradients()),
        figure="Z.modes.grad",
    )
    rows: list[tuple[str, float, int | str]] = []
    for mode, (_, reduction) in MODES.items():
        name = NAMES[mode]
        training = xor_in_mode(mode)
        training.run(1)
        w = numbers(training.params)
        page.line(f"w after one epoch, {name}", UPDATES[mode], w, figure=f"Z.modes.{mode}.p1")
        # A mean over the four patterns is reported as a mean: four times that is the sum.
        error = training.error() * (4 if reduction == "mean" else 1)
        page.line(f"E, {name}", "½ Σ_d (t_d - o_d)²", error, figure=f"Z.modes.{mode}.E1")
        epochs: int | str = "not tried"
        if mode != "offline_mean":
            epochs = xor_in_mode(mode).until(0.01, most=2000) or "more than 2000"
            page.line(
                f"epochs until E ≤ 0.01, {name}",
                "",
                float(epochs),
                figure=f"Z.modes.{mode}.epochs_to_0.01",
            )
        rows.append((name, error, epochs))
    page.table(("mode", "E after one epoch", "epochs until E ≤ 0.01"), rows)


def _rates(page: Page) -> None:
    page.heading("Does offline training bear larger rates?")
    page.say(
        """The lecture says so. Take four equal patterns x = 1, t = 1 and one weight from 0, at
        η = 0.6. Online multiplies the distance to the best weight 1 by 1 - η with each pattern.
        The sum of the four gradients multiplies it by 1 - 4 η with each epoch, so it needs
        η < 2/4; the mean by 1 - η, so it needs η < 2. The sum bears the smaller rate, not the
        larger one. (1e-16 is the last digit of these numbers.)"""
    )
    eta = setting("SUMMEAN")["eta"]
    modes = ("online", "offline_sum", "offline_mean")
    distances = [abs(weight_after(equal_patterns(eta, mode), 10) - 1) for mode in modes]
    page.line(
        "|w - 1| after 10 epochs: online, offline sum, offline mean",
        "|1 - η|^40, |1 - 4 η|^10, |1 - η|^10",
        distances,
        numbers="0.4^40, 1.4^10, 0.4^10",
        figure="Z.summean",
    )
    page.claim(
        "At η = 0.6 the sum goes away from the best weight, and the other two come close.",
        distances[1] > 1 > distances[2] > distances[0],
        f"{distances[1]:.4g} against {distances[0]:.2g} and {distances[2]:.3g}",
    )
    at_limit = [
        abs(weight_after(equal_patterns(limit, mode), 11) - 1)
        for limit, mode in zip((2.0, 0.5, 2.0), modes, strict=True)
    ]
    page.line(
        "|w - 1| after 11 epochs at the limits η = 2, 0.5, 2",
        "",
        at_limit,
        equals=[1.0, 1.0, 1.0],
        because="(-1)^n",
    )


def _noise(page: Page) -> None:
    page.heading("Does online training settle?")
    example = setting("NOISE")
    page.say(
        f"""Two patterns x = 1 with the targets {example["d"][0]} and {example["d"][1]}: the best
        weight is their mean, 1. Online at a constant rate goes back and forth between them, and
        after each epoch stands where the last one has pulled it: w = (1 - η)² w + (1 - η) η 1.05
        + η 0.95, which at η = 0.5 stays at 0.98333... Offline comes to 1."""
    )
    eta, (first, second) = example["eta"], example["d"]
    page.line(
        "w after 200 epochs: online, offline mean",
        "",
        [weight_after(noisy_targets(mode), 200) for mode in ("online", "offline_mean")],
        figure="Z.online_bias",
    )
    page.line(
        "w, online",
        "[(1 - η) η d_1 + η d_2] / [1 - (1 - η)²]",
        weight_after(noisy_targets("online"), 200),
        equals=((1 - eta) * eta * first + eta * second) / (1 - (1 - eta) ** 2),
        because="where an epoch leads back to its beginning",
    )


def _faster(page: Page) -> None:
    page.heading("Does online training need fewer epochs?")
    page.say(
        """It does where the data repeat themselves: with the same four patterns five times in an
        epoch, online has made twenty updates where offline has made one. On XOR with sums, above,
        it needed more."""
    )
    epochs = [
        redundant_patterns(mode).until(1e-6, most=1000) or 0 for mode in ("online", "offline_mean")
    ]
    page.line(
        "epochs until the mean of ½ e² is 1e-6: online, offline mean",
        "",
        [float(n) for n in epochs],
        figure="Z.online_faster",
    )
    page.say(
        """So: offline follows the gradient itself, once in an epoch; online follows a rough guess
        at it, as often as there are examples. Batches lie in between, and are what is used. To try
        it on a larger network: manualbp train --batch-size 1 is online, --batch-size 0 offline."""
    )
