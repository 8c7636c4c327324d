"""Linear units: one neuron and the delta rule (lms), and several layers of them (linear-nets).

Source: Porr, sections 2 to 7.
"""

from __future__ import annotations

from itertools import count

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.checks.differences import central_differences
from manualbp.explain.networks import Network, flat, float64, network
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart, charts
from manualbp.explain.registry import topic
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD

RATES = (0.01, 0.2, 0.39, 0.4, 0.41)


@topic("lms", "One linear neuron, and the delta rule (LMS)", "R01", "R02", "R03")
def lms(page: Page) -> None:
    """Write the linear neuron, its learning rule, the limit of the step, and a stream of pairs."""
    given = setting("PORR_NEURON")
    x, d, mu = float64([given["x"]]), float64([[given["d"]]]), given["mu"]
    net = neuron(given["omega"])

    page.heading("The neuron and its error")
    page.say(
        """A linear neuron adds up its inputs, each times a weight. What it gives is compared with
        what is desired, and half the square of the difference is the error to be made small."""
    )
    page.given("x", given["x"], "the inputs")
    page.given("ω", given["omega"], "the weights")
    page.given("d", given["d"], "the desired output")
    page.given("μ", mu, "the learning rate")
    y = net.predict(x).item()
    e = net.output_error(x, d).item()
    page.line("y", "Σ_j x_j ω_j", y, numbers="1 · 0.5 + 2 · (-0.25)", figure="P.neuron.y")
    page.line("e", "y - d", e, numbers="0 - 1", figure="P.neuron.e")
    page.line("E", "½ e²", net.error(x, d), numbers="½ · (-1)²", figure="P.neuron.E")

    page.say(
        """There is no bias here. Where one is wanted, it is the weight of one more input that is
        always 1: with x_0 = 1 and ω_0 = b the same sum gives Σ_j x_j ω_j + b, and nothing below
        changes."""
    )
    page.line(
        "y with b = 0.75",
        "Σ_{j≥0} x_j ω_j",
        neuron([0.75, *given["omega"]]).predict(float64([[1, *given["x"]]])).item(),
        numbers="1 · 0.75 + 1 · 0.5 + 2 · (-0.25)",
        equals=y + 0.75,
        because="y + b",
    )

    page.heading("One step downhill")
    page.say(
        """How does E change when one weight does? By the chain rule ∂E/∂ω_j = ∂E/∂y · ∂y/∂ω_j, and
        the two factors are e and x_j. If that slope is positive, a smaller weight has a smaller
        error, so the step goes against it."""
    )
    weight = net.params.named()["0.weight"]
    slope = central_differences(lambda: net.loss.forward(net.predict(x), d)[0], weight, float64(1))
    gradient = net.gradients(x, d)[0].view(-1)
    page.line(
        "∂E/∂ω_j",
        "e x_j",
        gradient,
        numbers="[-1 · 1, -1 · 2]",
        equals=slope.view(-1),
        because="central differences of E",
        tolerance=1e-8,
    )
    stepped = net.copy()
    _, after = stepped.descent(x, d, SGD(mu)).errors(1)
    change = (stepped.matrices[0] - net.matrices[0]).view(-1)
    page.line(
        "Δω_j",
        "-μ ∂E/∂ω_j = μ (d - y) x_j",
        change,
        numbers="[0.1 · 1 · 1, 0.1 · 1 · 2]",
        figure="P.neuron.dw",
    )
    page.line("E after it", "½ (y - d)²", after, numbers="½ · (-0.5)²", figure="P.neuron.E_after1")
    _, uphill = neuron(given["omega"]).descent(x, d, SGD(-mu)).errors(1)
    page.claim(
        """The sign matters. The lecture defines e = y - d and later writes Δω = μ e x, which needs
        e = d - y. Taken together, literally, the two make E rise.""",
        uphill == figure("P.neuron.E_after1_eq11_literal").value and uphill > net.error(x, d),
        f"E = {uphill:g} instead of {after:g}",
    )

    page.heading("Again and again")
    page.say(
        """A step changes the output by Σ_j Δω_j x_j = -μ |x|² e. So every step on the same pair
        multiplies e by the same number, 1 - μ |x|², which is 1 - 0.1 · 5 = 0.5 here."""
    )
    signals = error_signals(net.copy(), x, d, mu, 5)
    page.line("e_0 ... e_5", "(1 - μ |x|²)^n e_0", signals, figure="P.neuron.e_n")

    page.heading("How large may the step be?")
    page.say(
        """The error shrinks as long as 1 - μ |x|² lies between -1 and 1, that is for
        0 < μ < 2/|x|². It is gone after one step at μ = 1/|x|². That a rate should be much smaller
        than 1 is neither needed nor enough: what counts is μ |x|²."""
    )
    limit = 2 / float((x * x).sum())
    page.line(
        "limit of μ",
        "2 / |x|²",
        limit,
        numbers="2 / (1² + 2²)",
        equals=largest_safe_rate(net, x, d),
        because="trials, halving the interval between rates that lower and raise E",
        tolerance=1e-9,
    )
    outcomes = {
        0.01: "shrinks slowly",
        0.2: "gone after one step",
        0.39: "shrinks slowly, its sign alternating",
        0.4: "alternates for ever",
        0.41: "grows",
    }
    for rate, expected in zip(RATES, figure("P.neuron.stability").value, strict=True):
        trained = net.copy()
        trained.descent(x, d, SGD(rate)).run(200)
        page.line(
            f"|e_200|, μ = {rate}",
            "|1 - μ |x|²|^200",
            abs(trained.output_error(x, d).item()),
            numbers=f"|{1 - rate * 5:.4g}|^200: {outcomes[rate]}",
            equals=expected,
            because="the figure P.neuron.stability",
            absolute=1e-15,  # e is a difference of numbers near 1
        )
    page.picture(
        "rates",
        "The error signal e over the steps for five rates; the limit is 0.4.",
        lambda: draw_rates(net, x, d),
    )

    _stream(page)


def _stream(page: Page) -> None:
    """Write how four pairs, over and over, give the weights that they were made with."""
    given = setting("PORR_STREAM")
    inputs, desired = float64(given["X"]), float64(given["d"])
    rows = list(zip(torch.split(inputs, 1), torch.split(desired.unsqueeze(1), 1), strict=True))
    net = neuron(given["omega0"])
    page.heading("Learning from a stream of pairs")
    page.say(
        """Now four pairs come by, one after the other and over and over, and each is followed by
        a step of its own. They were made with the weights (2, -3), which the neuron does not know.
        It begins with (0, 0) and μ = 0.1. The first round:"""
    )
    path = [flat(net.matrices[0])]
    first_round: list[tuple[object, ...]] = []
    epochs = 0
    for epochs in count(1):
        for x, d in rows:
            y, e = net.predict(x).item(), net.output_error(x, d).item()
            net.descent(x, d, SGD(given["mu"])).run(1)
            path.append(flat(net.matrices[0]))
            if epochs == 1:
                shown = [f"({a:g}, {b:g})" for a, b in (flat(x), path[-1])]
                first_round.append((shown[0], d.item(), y, e, shown[1]))
        if max(net.output_error(x, d).abs().item() for x, d in rows) < 1e-6:
            break
    page.table(("x", "d", "y", "e = y - d", "ω afterwards"), first_round)
    page.line("ω after each", "ω_j + μ (d - y) x_j", path[1:5], figure="P.stream.first_epoch")
    page.line(
        "rounds", "until |y - d| < 10⁻⁶ for all four", epochs, figure="P.stream.epochs_to_1e-6"
    )
    page.line(
        "ω at the end",
        "ω_j + μ (d - y) x_j",
        path[-1],
        equals=given["true_omega"],
        because="the weights that made the pairs",
        tolerance=1e-6,
    )
    page.picture(
        "stream",
        "The way of the weights from (0, 0) to (2, -3), and lines of equal error.",
        lambda: draw_path(path, inputs, desired),
    )


@topic("linear-nets", "Several layers of linear neurons, and why they are not enough", "R04")
def linear_nets(page: Page) -> None:
    """Write error backpropagation through two linear layers, and their collapse to one."""
    given = setting("PORR_2LAYER")
    x, d, mu = float64([given["x"]]), float64([given["d"]]), given["mu"]
    net = network([given["Omega_kj"], given["Omega_ji"]])

    page.heading("Forward")
    page.say(
        """Two layers of linear neurons: the inputs y_k, the hidden y_j, the outputs y_i. In the
        matrices a row belongs to the neuron that a weight comes from and a column to the neuron
        that it goes to, so a layer is a product of a row vector and a matrix."""
    )
    page.given("y_k", given["x"], "the inputs")
    page.given("ω_kj", given["Omega_kj"], "weights to the hidden neurons")
    page.given("ω_ji", given["Omega_ji"], "weights to the outputs")
    page.given("d_i", given["d"], "the desired outputs")
    below, above = net.stages(x, net.output_error(x, d))
    page.line(
        "y_j",
        "Σ_k y_k ω_kj",
        below.y[0],
        numbers="[1 · 0.5 + 2 · 0.25, 1 · (-0.5) + 2 · 1]",
        figure="P.2layer.linear.y_j",
    )
    page.line(
        "y_i",
        "Σ_j y_j ω_ji",
        above.y[0],
        numbers="[1 · 1 + 1.5 · 0.5, 1 · (-1) + 1.5 · 2]",
        figure="P.2layer.linear.y_i",
    )
    page.line(
        "E",
        "½ Σ_i (y_i - d_i)²",
        net.error(x, d),
        numbers="½ (0.75² + 1²)",
        figure="P.2layer.linear.E",
    )

    page.heading("The error goes back")
    page.say(
        """For the outputs the error is known, e_i = d_i - y_i. A hidden neuron has no desired
        output. But it is answerable for each output as far as its weight to it goes: the trick is
        to send the errors back through the very weights that the signals came through."""
    )
    e_i, e_j = -above.dy[0], -below.dy[0]
    page.line(
        "e_i",
        "d_i - y_i",
        e_i,
        numbers="[1 - 1.75, 1 - 2]",
        equals=(d - net.predict(x))[0],
        because="the outputs above",
    )
    page.line(
        "e_j",
        "Σ_i e_i ω_ji",
        e_j,
        numbers="[-0.75 · 1 + (-1) · (-1), -0.75 · 0.5 + (-1) · 2]",
        figure="P.2layer.linear.e_j",
    )
    kj, ji = net.gradients(x, d)
    page.line("∂E/∂ω_ji", "-e_i y_j", ji, figure="P.2layer.linear.dE_dOmega_ji")
    page.line("∂E/∂ω_kj", "-e_j y_k", kj, figure="P.2layer.linear.dE_dOmega_kj")
    page.say(
        """The same recipe goes on for as many layers as there are: each e is the e above times the
        weights between. Here it is for 1, 2, 3 and 100 layers, beside torch's autograd."""
    )
    for layers in (1, 2, 3, 100):
        deep = network([turned(l) for l in range(layers)])
        dy = deep.output_error(x, d)
        page.line(
            f"∂E/∂Ω_1, {layers} layer{'s' if layers > 1 else ''}",
            "-e_j y_k",
            deep.gradients(x, d)[0],
            equals=deep.through_autograd(x, dy)[0],
            because="autograd",
        )

    page.heading("All layers are one layer")
    single = net.collapsed()
    page.say(
        """Σ_j (Σ_k y_k ω_kj) ω_ji = Σ_k y_k (Σ_j ω_kj ω_ji): the brackets may stand where one
        likes. So two linear layers do what one layer does whose matrix is the product."""
    )
    page.line("Ω", "Σ_j ω_kj ω_ji", single.matrices[0], figure="P.collapse")
    inputs = float64([[1, 2], [-3, 0.5], [0.25, 4]])
    page.line(
        "y_i of three inputs",
        "Σ_k y_k Ω_ki",
        single.predict(inputs),
        equals=net.predict(inputs),
        because="the two layers",
    )
    page.say(
        """The functions are the same; the learning is not. A step on the two layers moves the
        product in another way than a step on the one."""
    )
    nets = {"one layer": single, "two layers": net}
    moved = {name: each.copy() for name, each in nets.items()}
    for each in moved.values():
        each.descent(x, d, SGD(mu)).run(1)
    one, two = (each.collapsed().matrices[0] for each in moved.values())
    figures = figure("P.collapse_learning").value
    because = "the figure P.collapse_learning"
    page.line("Ω after a step", "Ω - μ ∂E/∂Ω", one, equals=figures[0], because=because)
    page.line(
        "product after a step",
        "(Ω_1 - μ ∂E/∂Ω_1) (Ω_2 - μ ∂E/∂Ω_2)",
        two,
        equals=figures[1],
        because=because,
    )
    page.picture(
        "learning",
        "One layer and two layers that begin as the same function, μ = 0.1.",
        lambda: draw_learning({name: each.copy() for name, each in nets.items()}, x, d, mu),
    )
    page.say(
        """So more layers pay only with something between them that is not linear; `explain
        activations` shows what is used."""
    )


def neuron(weights: list[float]) -> Network:
    """Return a linear neuron without bias."""
    return network([[[w] for w in weights]])


def turned(l: int) -> list[list[float]]:
    """Return a matrix that differs from layer to layer and leaves signals about as long."""
    s = 0.1 * (l % 3)
    return [[0.6 + s, -0.8], [0.8, 0.6 - s]]


def error_signals(net: Network, x: Tensor, d: Tensor, mu: float, steps: int) -> list[float]:
    """Return e before each step on one pair and after the last."""
    signals = [net.output_error(x, d).item()]
    for _ in range(steps):
        net.descent(x, d, SGD(mu)).run(1)
        signals.append(net.output_error(x, d).item())
    return signals


def largest_safe_rate(net: Network, x: Tensor, d: Tensor) -> float:
    """Find by trials the rate above which E grows."""
    low, high = 0.0, 1.0
    for _ in range(34):
        middle = (low + high) / 2
        before, after = net.copy().descent(x, d, SGD(middle)).errors(1)
        low, high = (middle, high) if after < before else (low, middle)
    return low


def draw_rates(net: Network, x: Tensor, d: Tensor) -> Picture:
    """Draw e over the steps, one chart for each rate."""
    picture, all_axes = charts(len(RATES), 11, 3)
    for axes, rate in zip(all_axes, RATES, strict=True):
        axes.axhline(0, color="0.8")
        axes.plot(error_signals(net.copy(), x, d, rate, 20), marker=".")
        axes.set(title=f"μ = {rate}", xlabel="step", ylim=(-3, 3))
        axes.label_outer()
    all_axes[0].set_ylabel("e")
    return picture


def draw_path(path: list[list[float]], x: Tensor, d: Tensor) -> Picture:
    """Draw the weights, one point an update, over the error of all pairs together."""
    picture, axes = chart(5.5, 5)
    first, second = torch.linspace(-0.5, 3, 71).double(), torch.linspace(-4, 0.5, 91).double()
    weights = torch.stack(torch.meshgrid(first, second, indexing="xy"), -1)
    error = 0.5 * ((weights @ x.T - d) ** 2).sum(-1)
    axes.contour(first, second, error, levels=[0.1, 0.5, 2, 5, 10, 20, 40], colors="0.8")
    axes.plot(*zip(*path, strict=True), marker=".", linewidth=1)
    axes.plot(*path[-1], marker="*", markersize=14, color="black")
    axes.set(xlabel="ω₁", ylabel="ω₂", aspect="equal")
    return picture


def draw_learning(nets: dict[str, Network], x: Tensor, d: Tensor, mu: float) -> Picture:
    """Draw E over the updates of each network."""
    picture, axes = chart()
    for name, net in nets.items():
        axes.plot(net.descent(x, d, SGD(mu)).errors(30), marker=".", label=name)
    axes.set(xlabel="update", ylabel="E", yscale="log")
    axes.legend()
    return picture
