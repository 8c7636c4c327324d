"""Porr, "Deep learning analytics"."""

from __future__ import annotations

import torch

from manualbp.explain.errata.entry import erratum, wording
from manualbp.explain.networks import Network, float64, jacobian, network, values_and_slopes
from manualbp.explain.page import Page
from manualbp.layers import EVALUATION, AnyLayer, Linear, ReLU, Sequential, Sigmoid, Step
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters
from manualbp.perceptron import largest_margin

NEURON = setting("PORR_NEURON")
TWO_LAYERS = setting("PORR_2LAYER")
X, D = float64([TWO_LAYERS["x"]]), float64([TWO_LAYERS["d"]])


def neuron() -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Return a linear neuron with two inputs, and the pair it is to learn."""
    net = network([[[w] for w in NEURON["omega"]]])
    return net, float64([NEURON["x"]]), float64([[NEURON["d"]]])


def two_layers(unit: AnyLayer | None) -> Network:
    """Return the two layers of two units."""
    return network([TWO_LAYERS["Omega_kj"], TWO_LAYERS["Omega_ji"]], unit, unit)


@erratum(
    "E-PORR-1",
    "Eqs 3, 9, 10, 11, and 13 to 22",
    stands="e = y - d (Eq 3), and Δω = μ e y_j (Eq 11)",
    right="With Eq 3 it is Δω = -μ e y_j. Eq 10 on need e = d - y; then Eq 9's brace is e.",
)
def _(page: Page) -> None:
    net, x, d = neuron()
    mu = NEURON["mu"]
    page.line(
        "∂E/∂y",
        "y - d",
        net.output_error(x, d),
        numbers="0 - 1",
        equals=[[-1.0]],
        because="Eq 3 is the derivative of Eq 4",
    )
    page.line("E before the update", "½ e²", net.error(x, d), figure="P.neuron.E")
    page.line(
        "E after Δω = -μ e y_j",
        "½ e²",
        net.copy().descent(x, d, SGD(mu)).errors(1)[1],
        figure="P.neuron.E_after1",
    )
    page.line(
        "E after Δω = +μ e y_j",
        "½ e²",
        net.copy().descent(x, d, SGD(-mu)).errors(1)[1],
        figure="P.neuron.E_after1_eq11_literal",
    )


@erratum(
    "E-PORR-2",
    "Eqs 21 and 22",
    stands="Θ'(y_i) and Θ'(y_j)",
    right="Θ'(v_i) and Θ'(v_j), as in Eq 20; y(1-y) is Θ' expressed by y, not Θ' at y.",
)
def _(page: Page) -> None:
    v = float64(1.75)
    y, slope = values_and_slopes(Sigmoid(), v)
    _, at_y = values_and_slopes(Sigmoid(), y)
    page.line(
        "σ'(v), σ'(y), y(1-y) at v = 1.75",
        "",
        torch.stack([slope, at_y, y * (1 - y)]),
        figure="P.theta_prime_arg",
    )
    slopes: list[float] = []
    for at_zero in (0.0, 1.0):
        relu = ReLU(at_zero)
        y, slope = values_and_slopes(relu, float64(-2.0))
        slopes += [float(slope), float(values_and_slopes(relu, y)[1])]
    page.line(
        "ReLU at v = -2: Θ'(v); Θ'(y) with Θ'(0) = 0; with Θ'(0) = 1",
        "",
        [slopes[0], slopes[1], slopes[3]],
        figure="P.relu_y_arg",
    )
    page.claim(
        "Read literally, with Θ'(0) = 1 every inactive unit would learn as if it were active.",
        slopes == [0, 0, 0, 1],
        f"Θ'(y) = {slopes[3]:g} where Θ'(v) = {slopes[2]:g}",
    )


@erratum(
    "E-PORR-3",
    "Eq 22",
    stands="e_j = Σ_i e_i ω_ji",
    right="e_j = Σ_i e_i Θ'(v_i) ω_ji: Eq 21 keeps Θ' outside of e, so the sum must bring it in.",
)
def _(page: Page) -> None:
    net = two_layers(Sigmoid())
    right = net.gradients(X, D)[0]
    page.line(
        "∂E/∂ω_kj",
        "-y_k Θ'(v_j) Σ_i e_i Θ'(v_i) ω_ji",
        right,
        figure="P.2layer.sigmoid.dE_dOmega_kj",
    )
    lower = network([TWO_LAYERS["Omega_kj"]], output=Sigmoid())
    (printed,) = lower.pull_back(X, net.output_error(X, D) @ net.matrices[1].T)
    page.line(
        "∂E/∂ω_kj as printed",
        "-y_k Θ'(v_j) Σ_i e_i ω_ji",
        printed,
        figure="P.2layer.sigmoid.dE_dOmega_kj_eq22_literal",
    )
    lengths = ((right * right).sum() * (printed * printed).sum()).sqrt()
    cosine = float((right * printed).sum() / lengths)
    page.claim("They differ in direction, not only in length.", cosine < 0.999, f"{cosine=:.4f}")


@erratum(
    "E-PORR-4",
    "Eq 4",
    stands="E = ½ e², with no index",
    right="E = ½ Σ_i e_i². Eq 13 sums over the outputs i, which needs this sum.",
)
def _(page: Page) -> None:
    net = two_layers(None)
    error = net.output_error(X, D)[0]
    page.line(
        "E", "½ Σ_i e_i²", net.error(X, D), numbers="½ (0.75² + 1²)", figure="P.2layer.linear.E"
    )
    page.line(
        "½ e_i²",
        "",
        error * error / 2,
        equals=[0.28125, 0.5],
        because="½ · 0.75² and ½ · 1²",
    )
    both = -(net.output_error(X, D) @ net.matrices[1].T)[0]
    page.line("e_j", "Σ_i e_i ω_ji", both, figure="P.2layer.linear.e_j")


@erratum(
    "E-PORR-5",
    "Eqs 8, 15 and 16; w beside ω",
    stands="∂/∂ω_kj of Σ_k y_k w_kj, with k as the index of the sum and of the derivative",
    right="Another letter for the sum. Only the term of ω_kj itself is left, y_k; w is ω.",
)
def _(page: Page) -> None:
    net, x, _ = neuron()
    (slopes,) = net.pull_back(x, float64([[1.0]]))
    page.line("∂y/∂ω_k", "y_k", slopes.view(-1), equals=NEURON["x"], because="the inputs")
    page.claim(
        "None of them is Σ_k y_k, which comes out if every term of the sum is taken along.",
        bool((slopes != x.sum()).all()),
        f"Σ_k y_k = {float(x.sum()):g}",
    )


@erratum(
    "E-PORR-6",
    "before Eq 22",
    stands="The internal error is announced; the equation gives the weight change Δω_kj.",
    right="e_j is the sum at the end of Eq 22. Δω_kj is what follows from it.",
)
def _(page: Page) -> None:
    net = two_layers(None)
    e = -(net.output_error(X, D) @ net.matrices[1].T)[0]
    change = -TWO_LAYERS["mu"] * net.gradients(X, D)[0]
    page.line("e_j, one for each hidden unit", "Σ_i e_i ω_ji", e, figure="P.2layer.linear.e_j")
    page.line(
        "Δω_kj, one for each weight",
        "μ y_k e_j",
        change,
        equals=TWO_LAYERS["mu"] * X[0].outer(e),
        because="the product",
    )


@erratum(
    "E-PORR-7",
    "Eq 13",
    stands="∂y_i/∂y_j = ω_ji",
    right="So for linear units only. In general it is Θ'(v_i) ω_ji.",
)
def _(page: Page) -> None:
    w = float64(TWO_LAYERS["Omega_ji"])
    top = network([w], output=Sigmoid())
    h = two_layers(Sigmoid()).activation_maps(X)[0][0]
    _, slope = values_and_slopes(Sigmoid(), h @ w)
    found = jacobian(top.model, h, top.params.views)
    page.line(
        "∂y_i/∂y_j, sigmoid units",
        "Θ'(v_i) ω_ji",
        found,
        equals=slope.unsqueeze(1) * w.T,
        because="slope by slope, weight by weight",
    )
    linear = network([w])
    page.line(
        "∂y_i/∂y_j, linear units",
        "ω_ji",
        jacobian(linear.model, h, linear.params.views),
        equals=w.T,
        because="the weights",
    )


@erratum(
    "E-PORR-8",
    "all of it",
    stands="No unit has a bias.",
    right="Without one, an input of 0 gives Θ(0) whatever the weights; with a step, that is 1.",
)
def _(page: Page) -> None:
    weights = torch.randn(1000, 2, generator=torch.Generator().manual_seed(page.seed))
    layer = Sequential(Linear(2, 1000, bias=False), Step())
    params = Parameters.zeros(layer.shapes())
    params.views["0"].weight.copy_(weights)
    y, _ = layer.forward(params.views, torch.zeros(1, 2), mode=EVALUATION)
    page.line(
        "mean answer of 1000 random units to (0, 0)",
        "",
        float(y.mean()),
        equals=1,
        because="0 ≥ 0",
    )
    and_ = setting("AND")["data"]
    best = largest_margin([x for x, _ in and_], [t for _, t in and_])
    page.claim(
        "So AND, where (0, 0) should give 0, needs a constant input. With one it can be done.",
        best is not None and best.b < 0,
        f"for instance w = ({best.w[0]}, {best.w[1]}), b = {best.b}" if best else "",
    )


wording(
    "E-PORR-9",
    "end of section 6, and the references",
    stands="Backpropagation through layers is credited to Widrow and Hoff as well; initial G.",
    right="Their rule is the one for a single layer. The initial is B.",
)


@erratum(
    "E-PORR-10",
    "below Eq 11",
    stands="μ ≪ 1",
    right="Neither needed nor enough. For one pattern the limit is 0 < μ < 2/|x|².",
)
def _(page: Page) -> None:
    for x, mu, grows in (([0.06, 0.08], 190, False), ([60.0, 80.0], 0.00021, True)):
        net = network([[[0.0], [0.0]]])
        errors = net.descent(float64([x]), float64([[1.0]]), SGD(mu)).errors(100)
        limit = 2 / (x[0] ** 2 + x[1] ** 2)
        page.claim(
            f"|x| = {(x[0] ** 2 + x[1] ** 2) ** 0.5:g}: μ = {mu:g} "
            + ("is too large." if grows else "is not too large."),
            (errors[-1] > errors[0]) == grows == (mu > limit),
            f"limit {limit:g}; E goes {errors[0]:g} → {errors[-1]:.3g} in 100 updates",
        )
    page.line(
        "e after 5 updates, μ = 0.1, |x|² = 5",
        "(1 - μ |x|²)^5 e_0",
        _error_after(5),
        equals=figure("P.neuron.e_n").value[5],
        because="the figure P.neuron.e_n",
    )


def _error_after(updates: int) -> float:
    net, x, d = neuron()
    net.descent(x, d, SGD(NEURON["mu"])).run(updates)
    return float(net.output_error(x, d))
