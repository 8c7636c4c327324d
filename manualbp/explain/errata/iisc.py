"""IISc, "Deep Learning - Theory and Practice"."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from manualbp.explain.errata.entry import erratum, wording
from manualbp.explain.examples import rows, xor_descent
from manualbp.explain.networks import flat, float64, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.topics.costs import (
    cost,
    factors_of_r,
    outputs_and_targets,
    penalised_network,
    penalised_pass,
    softmax_steps,
)
from manualbp.explain.topics.logistic_regression import logistic, maximum_likelihood, two_classes
from manualbp.explain.worked import example
from manualbp.layers import EVALUATION, ReLU, Sign, Softmax, Tanh
from manualbp.lectures import figure, setting
from manualbp.losses import MSELoss
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters


@erratum(
    "E-IISC-1",
    "Logistic Regression, l.25 to 27 and l.33 to 38",
    stands="Maximum likelihood solution: ∇E = Σ_n (y_n - t_n) φ_n",
    right="This is the gradient of the negative log likelihood. The solution is where it is 0, "
    "and has to be searched. t is 0 or 1 here, though l.107 has -1 and +1.",
)
def _(page: Page) -> None:
    x, t = two_classes()
    page.line(
        "∇E at w = 0",
        "Σ_n (y_n - t_n) φ_n",
        rows(logistic(0, 0).gradient(x, t))[0],
        figure="D.logreg.grad0",
    )
    best = maximum_likelihood(x, t)
    w = rows(best.params)[0]
    page.line(
        "the solution w, where ∇E = 0",
        "",
        w,
        equals=figure("D.logreg.ml").value[0],
        because="the figure D.logreg.ml",
    )
    page.line(
        "∇E there",
        "Σ_n (y_n - t_n) φ_n",
        rows(best.gradient(x, t))[0],
        equals=[0, 0],
        because="it is the minimum of E",
        absolute=1e-12,
    )
    with_signs = rows(best.gradient(x, 2 * t - 1))[0]
    page.claim(
        "With targets -1 and +1 in this formula it is not 0 there.",
        bool(with_signs.abs().max() > 1),
        f"({float(with_signs[0]):.3g}, {float(with_signs[1]):.3g})",
    )


@erratum(
    "E-IISC-2",
    "Perceptron Algorithm, l.107",
    stands="[-1, 1] for the two classes",
    right="The set of the two values -1 and 1, not the interval between them.",
)
def _(page: Page) -> None:
    grid = torch.linspace(-2, 2, 401)
    y, _ = values_and_slopes(Sign(), grid)
    outputs = sorted(set(flat(y)))
    page.line("outputs of sign for 401 inputs from -2 to 2", "", outputs, figure="D.given.targets")


@erratum(
    "E-IISC-3",
    "Forward Direction, l.143",
    stands="a_j^(l) = Σ_i w_ji^(l) x_i, i from 0 to d",
    right="So for l = 1 only; above it z_i^(l-1) takes the place of x_i, as on l.187. z_0 = 1 has "
    "to be put in for each layer, and d is the number of inputs.",
)
def _(page: Page) -> None:
    net, _, x, _ = penalised_network()
    hidden, squash, output = net.stages(x, torch.zeros(1, 2, dtype=torch.float64))
    views = net.params.views["2"]
    page.line(
        "a²",
        "Σ_j w_kj z_j + b_k",
        output.y,
        equals=squash.y @ views.weight.T + views.bias,
        because="the sum written out",
    )
    y = _softmax(output.y)
    page.line("y", "softmax(a²)", y[0], equals=figure("D.net").value[1], because="the figure D.net")
    literal, _ = net.model.layers[2].forward(views, hidden.x)
    page.claim(
        "With x_i in the second layer as well, the outputs are others.",
        bool((_softmax(literal) - y).abs().min() > 1e-3),
        f"y_1 = {float(_softmax(literal)[0, 0]):.6f} instead of {float(y[0, 0]):.6f}",
    )


@erratum(
    "E-IISC-4",
    "Back propagation, the definition of δ, l.165 to 183",
    stands="δ_j^l = ∂E/∂a_j^l · ∂a_j^l/∂w_ji^l = δ_j^l z_i^(l-1) = z_i^(l-1)",
    right="Two things in one line: δ_j^l = ∂E/∂a_j^l is the definition, and "
    "∂E/∂w_ji^l = δ_j^l z_i^(l-1) what follows from it.",
)
def _(page: Page) -> None:
    net, _, x, t = penalised_network()
    found = penalised_pass()
    page.line(
        "δ²", "∂E/∂a²", found.delta2, equals=figure("D.net").value[3], because="the figure D.net"
    )
    ours = net.gradient(x, t).named()["2.weight"]
    page.line(
        "∂E/∂w²_ji", "δ²_j z_i", ours, equals=found.delta2.outer(found.z), because="the product"
    )
    page.claim(
        "δ² is not z.",
        bool((found.delta2 - found.z).abs().min() > 0.1),
        f"z = ({float(found.z[0]):.4f}, {float(found.z[1]):.4f})",
    )


@erratum(
    "E-IISC-5",
    "Back propagation, δ at the output, l.198, with softmax and l.204",
    stands="δ_k^L = g'(a_k^L) ∂E/∂y_k",
    right="So for a g of each a_k by itself. In a softmax every y depends on every a: "
    "δ = J^T ∂E/∂y, which is y - t for cross-entropy with Σ_k t_k = 1, and s y - t for a sum s.",
)
def _(page: Page) -> None:
    a = float64([1.0, 2.0, 3.0])
    steps = softmax_steps(a, float64([0.0, 0.0, 1.0]))
    page.line(
        "δ at a = (1, 2, 3), t = (0, 0, 1): right; as printed",
        "",
        torch.stack([steps.delta, steps.elementwise]),
        figure="D.delta_softmax",
    )
    twice = softmax_steps(a, float64([1.0, 0.0, 1.0]))
    page.line(
        "δ for t = (1, 0, 1), s = 2",
        "s y - t",
        twice.delta,
        equals=2 * twice.y - float64([1.0, 0.0, 1.0]),
        because="the formula",
    )


@erratum(
    "E-IISC-6",
    "Back propagation, Example, l.204",
    stands="E^n = -Σ_k t_k^n log y_k^n + λ R(w), summed over n",
    right="λ R once, beside the sum (or λ/N in each E^n). It is no part of any δ. R is not said, "
    "½ Σ w² as a rule; the number of classes is c here and K on l.31.",
)
def _(page: Page) -> None:
    page.line(
        "factor of R in E for N = 4, λ = 0.01: as printed; beside the sum",
        "",
        factors_of_r(4),
        figure="D.lambda_N",
    )
    net, _, x, t = penalised_network()
    output = net.stages(x, net.output_error(x, t))[2]
    page.line(
        "δ² without λ R",
        "y - t",
        output.dy[0],
        equals=figure("D.net").value[3],
        because="the figure D.net, which is with λ R",
    )


@erratum(
    "E-IISC-7",
    "Forward Direction, l.147 and l.153",
    stands="z = g(a) in the hidden layer and y = g(a) at the output, with one g",
    right="The output has a function of its own: softmax for classes, none for numbers.",
)
def _(page: Page) -> None:
    net, _, x, _ = penalised_network()
    a = net.predict(x)
    same, _ = values_and_slopes(Tanh(), a)
    page.line(
        "Σ_k y_k, softmax at the output",
        "",
        float(_softmax(a).sum()),
        equals=1,
        because="probabilities",
    )
    page.claim(
        "With tanh at the output as well they are no probabilities.",
        abs(float(same.sum()) - 1) > 0.1,
        f"Σ_k y_k = {float(same.sum()):.4f}",
    )


@erratum(
    "E-IISC-8",
    "Cost-Function, l.280 to 292",
    stands="𝔼 J_MSE = Σ_i |v_i - y_i|², i to M; v is the output, y what is desired",
    right="Elsewhere y is the output, t what is desired, and M counts hidden units. A mean has "
    "1/M. With no ½ the gradient is 2 (v - y).",
)
def _(page: Page) -> None:
    v, y = outputs_and_targets()
    as_printed, slope = cost(MSELoss("sum"), v, y)
    page.line("J_MSE", "Σ_i |v_i - y_i|²", as_printed, figure="D.cost.mse")
    page.line("∂J/∂v", "2 (v - y)", slope, figure="D.cost.mse_grad")
    mean, _ = cost(MSELoss("mean"), v, y)
    page.line(
        "J_MSE as a mean, M = 2",
        "1/M Σ_i |v_i - y_i|²",
        3 * mean,
        equals=as_printed / 2,
        because="half the sum",
    )


@erratum(
    "E-IISC-9",
    "Cost-Function, ReLU, l.288 to 290",
    stands="z^l = max(a^(l-1), 0), a^(l-1) = W z^(l-2)",
    right="z^l = max(a^l, 0), a^l = W z^(l-1), as on l.187. At a = 0 the printed cases take the "
    "branch 0, Porr's Eq 23 the branch v: the same value, but each suggests another slope.",
)
def _(page: Page) -> None:
    zero = float64([0.0])
    here, there = (values_and_slopes(ReLU(slope), zero) for slope in (0.0, 1.0))
    page.line(
        "z at a = 0: branch 0; branch v",
        "",
        [float(here[0]), float(there[0])],
        equals=[0, 0],
        because="max(0, 0)",
    )
    page.line(
        "slope at a = 0: branch 0; branch v",
        "",
        [float(here[1]), float(there[1])],
        equals=[0, 1],
        because="the slopes left and right of 0",
    )


@erratum(
    "E-IISC-10",
    "Choice of target function ψ, l.296 to 300",
    stands="ψ(v_i) = e^(v_i) / Σ_i e^(v_i)",
    right="The sum needs another letter: Σ_j e^(v_j). And ψ is the output's activation function; "
    "a target function is something else.",
)
def _(page: Page) -> None:
    y = _softmax(float64([1.0, 2.0, 3.0]))
    total = exp(1) + exp(2) + exp(3)
    page.line(
        "ψ(1, 2, 3)",
        "e^(v_i) / Σ_j e^(v_j)",
        y,
        equals=[exp(1) / total, exp(2) / total, exp(3) / total],
        because="the formula, number by number",
    )
    page.line("Σ_i ψ_i", "", float(y.sum()), equals=1, because="probabilities")
    alone = _softmax(float64([3.0]))
    page.claim(
        "With i as the free index and also in the sum, every ψ would be e^v / e^v = 1.",
        float(alone) == 1.0,
        f"{float(alone):g} instead of {float(y[2]):.6f}",
    )


@erratum(
    "E-IISC-11",
    "Update equation, l.225, against Back propagation, l.161 to 218",
    stands="The update takes ∂E/∂w of the total E; all before is about E^n.",
    right="Both are methods: E for a full batch, E^n for one example at a time. The derivative is "
    "taken at w = w^(t-1).",
)
def _(page: Page) -> None:
    batch = example("S222_batch3")
    whole = batch.net.gradients(batch.x, batch.target)[0]
    parts = [batch.net.gradients(batch.x[n : n + 1], batch.target[n : n + 1])[0] for n in range(3)]
    page.line(
        "∂E/∂W_1 of three examples at once",
        "",
        whole,
        equals=sum(parts[1:], parts[0]),
        because="the sum of ∂E^n/∂W_1",
    )
    page.claim(
        "A single E^n has another gradient.",
        bool((parts[0] - whole).abs().max() > 1e-3),
        f"first entry {float(parts[0][0, 0]):.6f} instead of {float(whole[0, 0]):.6f}",
    )


@erratum(
    "E-IISC-12",
    "Forward Direction, l.157",
    stands="E = Σ_n |E^n|",
    right="E = Σ_n E^n. The bars do no harm where E^n is never negative, as here.",
)
def _(page: Page) -> None:
    batch = example("S222_batch3")
    each = [batch.net.error(batch.x[n : n + 1], batch.target[n : n + 1]) for n in range(3)]
    page.line(
        "Σ_n |E^n| of three examples",
        "",
        sum(abs(E) for E in each),
        equals=batch.net.error(batch.x, batch.target),
        because="E of all three",
    )


wording(
    "E-IISC-13",
    "Multi-layer Perceptron, l.116 and l.253",
    stands="Multi-layer perceptron [Hopfield, 1982]",
    right="Hopfield's paper is about a recurrent memory, not about this network.",
)


@erratum(
    "E-IISC-14",
    "Parameter Learning, l.67 to 74",
    stands="Learning parameters is called non-convex, with local optima.",
    right="That is so for networks. Logistic regression, before it, is convex: every start leads "
    "to the same weights.",
)
def _(page: Page) -> None:
    x, t = two_classes()
    nets = [logistic(0.0, 0.0), logistic(-2.0, 3.0)]
    for net in nets:
        net.descent(x, t, SGD(0.1)).run(500)
    ends = [rows(net.params)[0] for net in nets]
    page.line(
        "w of logistic regression, 500 updates from (0, 0)",
        "",
        ends[0],
        equals=ends[1],
        because="500 updates from (-2, 3)",
        tolerance=1e-6,
    )
    errors: list[float] = []
    for start in (0, 5):
        training = xor_descent(start, SGD(setting("XOR221")["eta"]))
        training.run(2000)
        errors.append(training.error())
    page.claim(
        "The 2-2-1 network on XOR ends in different places.",
        errors[0] > 0.2 and errors[1] < 0.01,
        f"E = {errors[0]:.3g} and {errors[1]:.3g} after 2,000 epochs, starts 0 and 5",
    )


def _softmax(a: Tensor) -> Tensor:
    y, _ = Softmax().forward(Parameters.zeros({}).views, a, mode=EVALUATION)
    return y
