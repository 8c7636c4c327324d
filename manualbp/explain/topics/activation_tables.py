"""The activation functions of the lectures: values, derivatives, kinks, and what they change.

Source: Porr, section 7; Kandemir, "activation functions"; Cazenave, "neuron"; Krzywicki, threshold.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure as Picture

from manualbp.checks.differences import one_sided_differences
from manualbp.explain.networks import flat, float64, network, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.pictures import charts
from manualbp.explain.registry import topic
from manualbp.layers import (
    EVALUATION,
    AnyLayer,
    LeakyReLU,
    Maxout,
    PiecewiseLinear,
    ReLU,
    Sigmoid,
    Sign,
    Step,
    Tanh,
    TanhHalf,
)
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD

VALUES: Mapping[str, tuple[str, AnyLayer, str]] = {
    "step": ("1 if v ≥ 0, else 0", Step(), "act.step_ge0"),
    "sign": ("1 if v ≥ 0, else -1", Sign(), "act.sign_ge0"),
    "piecewise linear": ("min(max(v, 0), 1)", PiecewiseLinear(), "act.piecewise_linear"),
    "sigmoid σ": ("1 / (1 + e^-v)", Sigmoid(), "act.sigmoid"),
    "tanh(v/2)": ("(1 - e^-v) / (1 + e^-v)", TanhHalf(), "act.tanh_half"),
    "tanh": ("tanh v", Tanh(), "act.tanh"),
    "ReLU": ("max(v, 0)", ReLU(), "act.relu"),
    "leaky ReLU": ("max(0.1 v, v)", LeakyReLU(0.1), "act.leaky_relu_0.1"),
}
"""By name: the equation, the layer, the figure with its values on the grid."""

SMOOTH: Mapping[str, tuple[str, AnyLayer, str]] = {
    "dσ/dv": ("y (1 - y)", Sigmoid(), "dact.sigmoid"),
    "dtanh(v/2)/dv": ("½ (1 - y²)", TanhHalf(), "dact.tanh_half"),
    "dtanh/dv": ("1 - y²", Tanh(), "dact.tanh"),
}
_RELU = "0 for v < 0, 1 for v > 0"
_LEAKY = "0.1 for v < 0, 1 for v > 0"
_INNER = "1 for 0 < v < 1, else 0"
KINKED: Mapping[str, tuple[str, AnyLayer, str]] = {
    "ReLU', 0 at 0": (_RELU, ReLU(0.0), "dact.relu_d0=0"),
    "ReLU', 1 at 0": (_RELU, ReLU(1.0), "dact.relu_d0=1"),
    "leaky', 0.1 at 0": (_LEAKY, LeakyReLU(0.1, 0.1), "dact.leaky_relu_0.1_d0=0.1"),
    "leaky', 1 at 0": (_LEAKY, LeakyReLU(0.1, 1.0), "dact.leaky_relu_0.1_d0=1"),
    "piecewise', 0 at 0, 1": (_INNER, PiecewiseLinear(0.0, 0.0), "dact.piecewise_linear_open"),
    "piecewise', 1 at 0, 1": (_INNER, PiecewiseLinear(1.0, 1.0), "dact.piecewise_linear_closed"),
}
"""The same for derivatives."""


@topic(
    "activations",
    "Activation functions: values, derivatives, kinks",
    *("R05", "R06", "R07", "R08", "R09", "R10", "R11", "R12"),
)
def activations(page: Page) -> None:
    """Write the tables of section 6, the choices at the kinks, Maxout, and Θ' in the rule."""
    grid = setting("ACT_GRID")["v"]
    v = float64(grid)
    page.heading("Values")
    page.say(
        """A unit first adds up, v = Σ_j y_j ω_j, and then bends the sum, y = Θ(v). Here is every Θ
        of the lectures at the same eight places:"""
    )
    page.given("v", grid, "the sums")
    for name, (equation, layer, known) in VALUES.items():
        page.line(name, equation, values_and_slopes(layer, v)[0], figure=known)
    page.say("At 0 the step and the sign are already up; torch.sign would say 0 there.")
    twice = 2 * values_and_slopes(Sigmoid(), v)[0] - 1
    page.line(
        "2 σ(v) - 1",
        "2 / (1 + e^-v) - 1",
        twice,
        equals=values_and_slopes(TanhHalf(), v)[0],
        because="tanh(v/2) above: the same function",
    )
    far = float64([-1000.0, 1000.0])
    page.line(
        "σ(±1000)",
        "1 / (1 + e^∓1000)",
        values_and_slopes(Sigmoid(), far)[0],
        equals=[0.0, 1.0],
        because="the limits, reached without an overflow",
    )

    page.heading("Derivatives")
    page.say(
        """The backward pass multiplies by Θ'(v). For the smooth ones the output y says all that is
        needed, so y is what a layer keeps."""
    )
    for name, (equation, layer, known) in SMOOTH.items():
        page.line(name, equation, values_and_slopes(layer, v)[1], figure=known)
    page.say(
        """The others are made of straight pieces. At a kink the slope jumps, and any number from
        the slope on the left to the slope on the right will do. Which one is a setting of the
        layer; unless told otherwise it is what torch takes: 0 for ReLU, 0.1 for the leaky one, 1
        for the piecewise linear one."""
    )
    for name, (equation, layer, known) in KINKED.items():
        page.line(name, equation, values_and_slopes(layer, v)[1], figure=known)
    inside = True
    for _, layer, _ in [*SMOOTH.values(), *KINKED.values()]:
        slope = values_and_slopes(layer, v)[1]
        low, high = one_sided_differences(
            lambda f=layer: values_and_slopes(f, v)[0], v, torch.ones_like(v)
        )
        inside = inside and bool(((slope >= low - 1e-5) & (slope <= high + 1e-5)).all())
    page.claim(
        "All these lie between the differences taken to the left and to the right.",
        inside,
        f"{len(SMOOTH) + len(KINKED)} functions at 8 places",
    )
    page.say("The slope of step and sign is 0: no gradient can train them (`perceptron-and`).")
    page.picture("functions", "The functions and their derivatives.", draw_functions)

    page.heading("The choice at the kink can matter")
    page.say(
        """A ReLU unit with x = 1, ω = 0 and target 1 stands right on its kink, v = 0. With
        Θ'(0) = 0 it never moves; with Θ'(0) = 1 it learns."""
    )
    one = float64([[1.0]])
    closed, half_open = (network([[[0.0]]], output=ReLU(slope)) for slope in (0.0, 1.0))
    page.line(
        "∂E/∂ω",
        "(y - d) Θ'(v) x",
        [net.gradients(one, one)[0].item() for net in (closed, half_open)],
        numbers="[(0 - 1) · 0 · 1, (0 - 1) · 1 · 1]",
        figure="P.relu0",
    )
    for net in (closed, half_open):
        net.descent(one, one, SGD(0.1)).run(1)
    page.line(
        "ω after a step, μ = 0.1",
        "ω - μ ∂E/∂ω",
        [net.matrices[0].item() for net in (closed, half_open)],
        equals=[0.0, 0.1],
        because="0 - 0.1 · 0 and 0 - 0.1 · (-1)",
    )

    _maxout(page)
    _learning_rule(page)


def _maxout(page: Page) -> None:
    """Write the largest of two linear pieces, and the units that it contains."""
    given = setting("MAXOUT")
    page.heading("Maxout: the largest of several linear pieces")
    page.say(
        """A Maxout unit learns its own shape: y = max(w_1ᵀx + b_1, w_2ᵀx + b_2). The gradient goes
        to the piece that wins. In a tie it is split, or goes to the first; that is a setting too
        (here: the first)."""
    )
    for name in ("w1", "b1", "w2", "b2", "x"):
        page.given(name, given[name])
    layer = Maxout(2, 1, ties="first")
    params = layer.parameters(dtype=torch.float64)
    pieces = {"weight": [[given["w1"]], [given["w2"]]], "bias": [[given["b1"]], [given["b2"]]]}
    params.load_state_dict({name: float64(values) for name, values in pieces.items()})
    y, saved = layer.forward(params.views, float64(given["x"]), mode=EVALUATION)
    winners = saved.share.squeeze(-1).argmax(0) + 1
    page.line(
        "[y, winners]", "max_p v[p], argmax_p v[p]", [flat(y), flat(winners)], figure="act.maxout"
    )
    page.say(
        """With w_2 = 0 and b_2 = 0 it is ReLU of the first piece, with w_2 = 0.1 w_1 and
        b_2 = 0.1 b_1 the leaky ReLU, and with w_2 = -w_1, b_1 = b_2 = 0 the absolute value."""
    )
    v = float64(setting("ACT_GRID")["v"])
    special: dict[str, tuple[float, torch.Tensor]] = {
        "max(v, 0)": (0.0, values_and_slopes(ReLU(), v)[0]),
        "max(v, 0.1 v)": (0.1, values_and_slopes(LeakyReLU(0.1), v)[0]),
        "max(v, -v)": (-1.0, v.abs()),
    }
    for equation, (second, expected) in special.items():
        unit = Maxout(1, 1, bias=False)
        params = unit.parameters(dtype=torch.float64)
        params.load_state_dict({"weight": float64([[[1.0]], [[second]]])})
        y, _ = unit.forward(params.views, v.unsqueeze(1), mode=EVALUATION)
        because = {0.0: "ReLU", 0.1: "leaky ReLU", -1.0: "|v|"}[second]
        page.line(
            f"w_1 = 1, w_2 = {second:g}", equation, y.squeeze(1), equals=expected, because=because
        )


def _learning_rule(page: Page) -> None:
    """Write what Θ adds to the rule of linear units, and two ways to get it wrong."""
    given = setting("PORR_2LAYER")
    x, d = float64([given["x"]]), float64([given["d"]])
    matrices = [given["Omega_kj"], given["Omega_ji"]]
    page.heading("What Θ changes in the learning rule")
    page.say(
        """The chain rule gets one more factor for every layer, Θ' at the sum v of that layer. With
        δ = ∂E/∂v: at the output δ_i = (y_i - d_i) Θ'(v_i), below it
        δ_j = Θ'(v_j) Σ_i δ_i ω_ji, and always ∂E/∂ω = δ times what comes in. The net of
        `linear-nets` again, now with each Θ:"""
    )
    for name, unit in (("sigmoid", Sigmoid()), ("tanh", Tanh()), ("relu", ReLU())):
        net = network(matrices, unit, unit)
        kj, ji = net.gradients(x, d)
        known = f"P.2layer.{name}"
        page.line(f"y_i, {name}", "Θ(Σ_j y_j ω_ji)", net.predict(x)[0], figure=f"{known}.y_i")
        page.line(f"E, {name}", "½ Σ_i (y_i - d_i)²", net.error(x, d), figure=f"{known}.E")
        page.line(f"∂E/∂ω_ji, {name}", "δ_i y_j", ji, figure=f"{known}.dE_dOmega_ji")
        page.line(f"∂E/∂ω_kj, {name}", "δ_j y_k", kj, figure=f"{known}.dE_dOmega_kj")
    net = network(matrices, Sigmoid(), Sigmoid())
    right = net.gradients(x, d)[0]
    without = network(matrices, Sigmoid()).pull_back(x, net.output_error(x, d))[0]
    trap = float64(figure("P.2layer.sigmoid.dE_dOmega_kj_eq22_literal").value)
    page.claim(
        """One Θ' is easily lost: the lecture's rule for the hidden weights sends y_i - d_i back
        without Θ'(v_i). That is another direction, not only another length.""",
        bool(((without - trap).abs() < 1e-12).all()),
        f"∂E/∂ω_11 = {without[0, 0]:.6g} instead of {right[0, 0]:.6g}",
    )
    at_v = values_and_slopes(Sigmoid(), float64([1.75]))
    at_y = values_and_slopes(Sigmoid(), at_v[0])[1].item()
    y, slope = (value.item() for value in at_v)
    page.line(
        "σ'(v), σ'(y), y (1 - y)",
        "at v = 1.75",
        [slope, at_y, y * (1 - y)],
        figure="P.theta_prime_arg",
    )
    page.claim(
        "Θ' is taken at v. The lecture prints Θ'(y), which is another number; y (1 - y) is right.",
        abs(slope - y * (1 - y)) < 1e-15 and abs(slope - at_y) > 0.05,
        f"{slope:.6g} is not {at_y:.6g}",
    )


def draw_functions() -> Picture:
    """Draw each function with its derivative."""
    picture, all_axes = charts(4, 11, 5, rows=2)
    v = torch.linspace(-3, 3, 601).double()
    for axes, (name, (_, layer, _)) in zip(all_axes, VALUES.items(), strict=True):
        y, slope = values_and_slopes(layer, v)
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.plot(v, y, label="Θ(v)")
        axes.plot(v, slope, "--", label="Θ'(v)")
        axes.set(title=name, xlabel="v", ylim=(-1.2, 2))
        axes.label_outer()
    all_axes[0].legend()
    return picture
