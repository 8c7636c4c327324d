"""Krzywicki, "Neural Networks and Deep Learning"."""

from __future__ import annotations

from math import exp

import torch

from manualbp.checks.differences import central_differences
from manualbp.explain.errata.entry import erratum, wording
from manualbp.explain.examples import worked_example_descent
from manualbp.explain.networks import flat, float64, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.topics.costs import penalised_network
from manualbp.explain.topics.perceptron import examples
from manualbp.explain.topics.training_modes import (
    equal_patterns,
    neuron,
    noisy_targets,
    redundant_patterns,
    sigmoid_unit,
    weight_after,
    xor_in_mode,
)
from manualbp.explain.topics.update_rules import bowl_path
from manualbp.explain.worked import example
from manualbp.layers import Linear, Sigmoid
from manualbp.lectures import figure
from manualbp.optimizers import SGD
from manualbp.perceptron import MINUS_PLUS_ONE, Learning, learn

AND = examples("AND")


def summary(learning: Learning) -> list[float]:
    """Return epochs, updates, the weights and the bias."""
    return [learning.epochs, learning.updates, *map(float, (*learning.w, learning.b))]


@erratum(
    "E-KRZY-1",
    "Artificial Neuron Model, l.41, against Perceptron Learning, l.88 to 90",
    stands="Outputs -1 and +1; an update rule with the cases y = 0 and t = 0.",
    right="Take 0 and 1 for both, or Δw_i = η (t - y)/2 x_i with -1 and +1: the same path.",
)
def _(page: Page) -> None:
    x, t = AND
    signs = learn(x, [MINUS_PLUS_ONE[int(v)] for v in t], outputs=MINUS_PLUS_ONE)
    page.line("AND with -1, +1: epochs, updates, w1, w2, b", "", summary(signs), figure="Z.AND.pm1")
    page.claim(
        "With -1 and +1 none of the printed cases for an update ever applies.",
        not any(row.y == 0 or row.target == 0 for row in signs.rows),
        f"y = 0 or t = 0 in 0 of {len(signs.rows)} rows",
    )


@erratum(
    "E-KRZY-2",
    "Perceptron Learning cont., l.74 and 83; Learning AND, l.102",
    stands="a = Σ_i x_i w_i + b with i from 0; b is the threshold; [0,1] activation",
    right="The sum from i = 1 and + b, or from i = 0 with x_0 = 1 and no b: both together count "
    "the bias twice. b is minus the threshold. [0,1] is the set of 0 and 1.",
)
def _(page: Page) -> None:
    x, t = AND
    once, twice = learn(x, t), learn([(1, *x_n) for x_n in x], t)
    last = figure("Z.AND.summary").value
    page.line(
        "bias counted once: epochs, updates, w1, w2, b",
        "",
        summary(once),
        equals=[*last[:2], *last[3:]],
        because="the figure Z.AND.summary",
    )
    page.line(
        "bias counted twice: epochs, updates, w0, w1, w2, b",
        "",
        summary(twice),
        figure="Z.trap.double_bias",
    )
    states = [[*twice.states[epoch].w[1:], twice.states[epoch].b] for epoch in (1, 2)]
    page.claim(
        "After the first epoch, which is all that is printed, both stand at the same w1, w2, b. "
        "After the second they do not.",
        states[0] == [*once.states[1].w, once.states[1].b]
        and states[1] != [*once.states[2].w, once.states[2].b],
        f"twice {states[1]}, once {[*once.states[2].w, once.states[2].b]}",
    )


@erratum(
    "E-KRZY-3",
    "Perceptron Learning cont., l.94",
    stands="η of the perceptron is selected by cross-validation.",
    right="From a zero start η only scales w and b; no answer changes. In floating point a tie "
    "a = 0 can be broken by rounding; take η = 1, or exact numbers.",
)
def _(page: Page) -> None:
    runs = [learn(*AND, rate=0.1, exact=True), learn(*AND, rate=0.1), learn(*AND, rate=0.5)]
    page.line(
        "epochs, updates: η = 1/10 exact; 0.1 in float64; 0.5 in float64",
        "",
        [[run.epochs, run.updates] for run in runs],
        figure="Z.AND.eta",
    )
    page.claim(
        "With 0.1 in float64 a rest of rounding is left.",
        runs[1].b == -0.20000000000000004,
        f"b = {runs[1].b!r}",
    )


@erratum(
    "E-KRZY-4",
    "Gradient Descent Derivation, l.165",
    stands="σ'(x) = -e^-x / (1 + e^-x)² = σ(x) (1 - σ(x))",
    right="+e^-x / (1 + e^-x)²: the middle term is negative, the right one positive.",
)
def _(page: Page) -> None:
    x = float64(0.5)
    _, slope = values_and_slopes(Sigmoid(), x)
    numerical = central_differences(lambda: values_and_slopes(Sigmoid(), x)[0], x, float64(1.0))
    middle = exp(-0.5) / (1 + exp(-0.5)) ** 2
    page.line(
        "σ'(0.5): central differences; +middle term; -middle term; σ (1 - σ)",
        "",
        [float(numerical), middle, -middle, float(slope)],
        figure="Z.sigmoid_derivative",
        tolerance=1e-8,
    )


@erratum(
    "E-KRZY-5",
    "Gradient Descent Derivation cont., l.187",
    stands="Target o_d; w_i is the sum of the weights into the node.",
    right="o_d is the output, t_d the target. w_i is one weight; the weighted sum is net_d.",
)
def _(page: Page) -> None:
    unit, x, t = sigmoid_unit()
    o = unit.predict(x)
    page.line(
        "o_d for AND, w = (-0.3, 0.2, 0.1)",
        "σ(net_d)",
        o.squeeze(1),
        equals=figure("Z.sigmoid_unit").value[0],
        because="the figure Z.sigmoid_unit",
    )
    page.line(
        "E with t = (0, 0, 0, 1)",
        "½ Σ_d (t_d - o_d)²",
        unit.error(x, t),
        equals=figure("Z.sigmoid_unit").value[1],
        because="the figure Z.sigmoid_unit",
    )


@erratum(
    "E-KRZY-6",
    "Gradient Descent Derivation cont., l.196",
    stands="∂σ(net_d)/∂x = σ(net_d) (1 - σ(net_d))",
    right="∂σ(net_d)/∂net_d. By an input x_i there is one factor more, w_i.",
)
def _(page: Page) -> None:
    unit, x, _ = sigmoid_unit()
    stages = unit.stages(x[3:], float64([[1.0]]))
    o = float(stages[1].y)
    page.line(
        "∂o/∂net at (1, 1)",
        "o (1 - o)",
        float(stages[1].dx),
        equals=o * (1 - o),
        because="0.5 · 0.5",
    )
    page.line(
        "∂o/∂x_i at (1, 1)",
        "w_i o (1 - o)",
        stages[0].dx[0],
        equals=[w * o * (1 - o) for w in (-0.3, 0.2, 0.1)],
        because="the factors",
    )


@erratum(
    "E-KRZY-7",
    "Gradient Descent, l.135 and l.141",
    stands="Small steps following EM; weights change proportionally to the gradient.",
    right="Gradient descent is not expectation maximisation. The step is proportional to the "
    "negative gradient, as the formula on l.147 has it.",
)
def _(page: Page) -> None:
    unit, x, t = sigmoid_unit()
    before, down = unit.copy().descent(x, t, SGD(0.5)).errors(1)
    _, up = unit.copy().descent(x, t, SGD(-0.5)).errors(1)
    page.line(
        "E before the step",
        "",
        before,
        equals=figure("Z.sigmoid_unit").value[1],
        because="the figure Z.sigmoid_unit",
    )
    page.claim(
        "Against the gradient E falls, along it E rises.",
        down < before < up,
        f"{down:.6f} < {before:.6f} < {up:.6f}",
    )


@erratum(
    "E-KRZY-8",
    "BP Algorithm, l.224",
    stands="w_ji goes from unit j to unit i.",
    right="To j from i, as the formulas on l.216 to 226 need: w_kh belongs to output k and hidden "
    "unit h.",
)
def _(page: Page) -> None:
    worked = example()
    output = worked.net.stages(worked.x, worked.net.output_error(worked.x, worked.target))[2]
    w = worked.net.params.views["2"].weight
    page.line(
        "∂E/∂out_h1: with w_kh; with w_hk in its place",
        "",
        [float((output.dy @ w)[0, 0]), float((output.dy @ w.T)[0, 0])],
        figure="Z.trap.transposed_W2",
    )


@erratum(
    "E-KRZY-9",
    "BP and Gradient Descent, l.131; BP Algorithm, l.216 to 226",
    stands="δ_k = o_k (1 - o_k) (t_k - o_k); f is the activation function; no bias",
    right="This δ is -∂E/∂net, where IISC's is +∂E/∂net: with + η δ x it is right. o (1 - o) is "
    "for sigmoids only. A bias has x = 1. The backward pass finds gradients; to update is "
    "another step.",
)
def _(page: Page) -> None:
    worked = example()
    stages = worked.net.stages(worked.x, worked.net.output_error(worked.x, worked.target))
    page.line(
        "δ of o1, o2, h1, h2",
        "-∂E/∂net",
        [-d for d in (*flat(stages[2].dy), *flat(stages[0].dy))],
        figure="Z.delta_signs",
    )
    net, _, x, t = penalised_network()
    squash = net.stages(x, net.output_error(x, t))[1]
    slope = squash.dx / squash.dy
    page.line(
        "∂o/∂net of tanh units",
        "1 - o²",
        slope,
        equals=1 - squash.y**2,
        because="∂E/∂net divided by ∂E/∂o",
    )
    page.claim(
        "For tanh o (1 - o) would be wrong.",
        bool((slope - squash.y * (1 - squash.y)).abs().min() > 0.1),
        f"{float(slope[0, 0]):.4f} against {float(squash.y[0, 0] * (1 - squash.y[0, 0])):.4f}",
    )


@erratum(
    "E-KRZY-10",
    "Offline and Online GD, l.247 to 281",
    stands="Batch: weights change after all items (l.247), or after some of them (l.278); batches "
    "count as online on l.271; l.255 adjusts deltas using deltas.",
    right="After all: full batch, here called offline. After some: mini-batch. After each: online. "
    "Weights and biases are what is adjusted.",
)
def _(page: Page) -> None:
    for mode, name in (
        ("online", "after each"),
        ("batch2", "after two"),
        ("offline_sum", "after all"),
    ):
        training = xor_in_mode(mode)
        training.run(1)
        page.line(
            f"E on XOR after an epoch, updates {name}",
            "",
            training.error(),
            figure=f"Z.modes.{mode}.E1",
        )


@erratum(
    "E-KRZY-11",
    "Offline and Online GD, l.263 to 276",
    stands="Offline works with reasonably large rates, online needs smaller ones and fewer epochs.",
    right="The sum of N gradients bears a smaller rate, not a larger one. True: at a constant rate "
    "online does not settle on the minimum. Fewer epochs: where data are redundant, not always.",
)
def _(page: Page) -> None:
    modes = ("online", "offline_sum", "offline_mean")
    eta = 0.6
    page.line(
        "|w - 1| after 10 epochs of 4 equal patterns, η = 0.6: online; offline sum; offline mean",
        "",
        [abs(weight_after(equal_patterns(eta, mode), 10) - 1) for mode in modes],
        figure="Z.summean",
    )
    page.line(
        "w for the targets 1.05 and 0.95, η = 0.5: online; offline mean",
        "",
        [weight_after(noisy_targets(mode), 200) for mode in ("online", "offline_mean")],
        figure="Z.online_bias",
    )
    page.line(
        "epochs on redundant data: online; offline mean",
        "",
        [
            float(redundant_patterns(mode).until(1e-6, 200) or 0)
            for mode in ("online", "offline_mean")
        ],
        figure="Z.online_faster",
    )
    epochs = int(figure("Z.modes.offline_sum.epochs_to_0.01").value)
    errors: list[float] = []
    for mode in ("online", "offline_sum"):
        training = xor_in_mode(mode)
        training.run(epochs)
        errors.append(training.error())
    page.claim(
        f"On XOR, after {epochs:,} epochs, offline with sums has reached E ≤ 0.01, online not yet.",
        errors[1] <= 0.01 < errors[0],
        f"{errors[1]:.6f} against {errors[0]:.6f}",
    )


@erratum(
    "E-KRZY-12",
    "Example of BP calculation (1), l.360, against (4), l.406",
    stands="The target of o1 is 0.1.",
    right="0.01: all arithmetic from l.406 on uses it.",
)
def _(page: Page) -> None:
    found: dict[str, list[float]] = {}
    for name in ("S222_t0.1", "S222"):
        worked = example(name)
        dy = worked.net.output_error(worked.x, worked.target)
        output = worked.net.stages(worked.x, dy)[2]
        (after,) = worked.course([1])
        w = after.parameters
        found[name] = [
            worked.net.error(worked.x, worked.target),
            float(dy[0, 0]),
            float(output.dy[0, 0] * output.x[0, 0]),
            *(w[4], w[5]),
            float(output.dx[0, 0]),
            w[0],
        ]
    page.line(
        "target 0.1: E, ∂E/∂out_o1, ∂E/∂w5, w5+, w6+, ∂E/∂out_h1, w1+",
        "",
        found["S222_t0.1"],
        figure="Z.target0.1",
    )
    page.line("∂E/∂w5, target 0.01", "", found["S222"][2], figure="Z.dE_dw5")


@erratum(
    "E-KRZY-13",
    "Example of BP calculation (9), l.493",
    stands="net_h1 = w1 i1 + w3 i2 + b1",
    right="w2 i2, as on l.368: 0.3775 and the new w2 need w2 = 0.2.",
)
def _(page: Page) -> None:
    worked = example()
    views, layer = worked.net.params.clone().views["0"], Linear(2, 2)
    right, _ = layer.forward(views, worked.x)
    views.weight[0, 1] = views.weight[1, 0]  # w3 in the place of w2
    printed, _ = layer.forward(views, worked.x)
    page.line(
        "net_h1: with w2 = 0.2; with w3 = 0.25",
        "",
        [float(right[0, 0]), float(printed[0, 0])],
        figure="Z.trap.w3_label",
    )


wording(
    "E-KRZY-14",
    "Example of BP calculation, l.408 and l.428",
    stands="Two slides of the example are numbered (5).",
    right="The second is (6), and so on.",
)


@erratum(
    "E-KRZY-15",
    "Improving BP, l.339",
    stands="η is usually below 0.5.",
    right="There is no such limit: it depends on the error surface. The examples in the document "
    "use 0.5 and 1, and the 2-2-2 example does well at 50.",
)
def _(page: Page) -> None:
    expected = {row[0]: row[1:] for row in figure("Z.eta.222").value}
    for eta in (0.5, 50, 500):
        training = worked_example_descent(SGD(float(eta)))
        training.run(1000)
        page.line(
            f"E, o1, o2 after 1,000 updates, η = {eta}",
            "",
            [training.error(), *flat(training.outputs())],
            equals=expected[eta],
            because="the figure Z.eta.222",
        )
    page.say("At 500 the first output is stuck at 0: the unit is saturated.")


@erratum(
    "E-KRZY-16",
    "Perceptron Learning cont., l.72",
    stands="The rule of the perceptron is called the delta rule.",
    right="The delta rule (Porr, Widrow and Hoff) takes the sum a before the threshold; the "
    "perceptron rule takes the output y behind it.",
)
def _(page: Page) -> None:
    row = learn(*AND).rows[0]
    page.line(
        "Δb, perceptron rule",
        "η (t - y), first row of AND",
        row.db,
        equals=figure("Z.AND.e1.r1").value[8],
        because="printed, KRZY l.110",
    )
    delta = neuron([[1.0, 0.0, 0.0]], [0.0], 1.0)  # the same row, its bias as the first input
    delta.run(1)
    page.line(
        "Δb, delta rule",
        "η (t - a), first row of AND",
        flat(delta.params.named()["0.weight"])[0],
        equals=0,
        because="a = 0 is the target already",
    )


@erratum(
    "E-KRZY-17",
    "Gradient Descent in Action, l.302 to 318",
    stands="AdaGrad, RMSProp and Nesterov's method, by name only.",
    right="Two things stay open: ε outside of the root or inside, and which of two points of "
    "Nesterov's method is kept as w. Each pair goes almost, but not quite, the same way.",
)
def _(page: Page) -> None:
    page.say("On E = ½ (w1² + 10 w2²) from (5, 1):")
    for label, first, second in (
        ("AdaGrad, ε outside and inside", "adagrad", "adagrad_eps_inside"),
        ("RMSProp, ε outside and inside", "rmsprop", "rmsprop_eps_inside"),
        ("Nesterov, w and look-ahead", "nesterov_lookahead_form", "nesterov_torch_form"),
    ):
        w = [bowl_path(name, 1)[1] for name in (first, second)]
        page.line(
            f"{label}: w after the first step",
            "",
            torch.stack(w),
            equals=[figure(f"Z.opt.{name}").value[0] for name in (first, second)],
            because=f"the figures Z.opt.{first} and {second}",
        )
        page.claim(
            "The two differ.",
            bool((w[0] != w[1]).all()),
            f"w1 = {float(w[0][0]):.10f} and {float(w[1][0]):.10f}",
        )
