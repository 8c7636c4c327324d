"""Layers: forward, backward, and the numbers of your own

Every layer that the registry finds has its topic; those that students type first have more words,
and single numbers worked out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import exp, tanh
from typing import Any

import torch
from torch import Tensor

from manualbp.checks.registry import Case, find_cases, layers
from manualbp.explain.layer_walk import (
    PLAIN_PYTHON,
    Walk,
    mapped,
    plainest,
    put,
    put_products,
    topic_name,
    topic_title,
    walk_through,
    write_code,
    write_details,
    write_equations,
    write_given,
    write_gradients,
    write_output,
)
from manualbp.explain.networks import jacobian, values_and_slopes
from manualbp.explain.page import Page, as_numbers
from manualbp.explain.plain import softmax, sums
from manualbp.explain.registry import topic
from manualbp.explain.scalar_formulas import (
    Formula,
    activation_formula,
    dot,
)
from manualbp.layers import (
    ELU,
    EVALUATION,
    GELU,
    AnyLayer,
    Dropout,
    LeakyReLU,
    Linear,
    Maxout,
    Mode,
    PiecewiseLinear,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Sign,
    SiLU,
    Softmax,
    Softplus,
    Step,
    Tanh,
    TanhHalf,
)
from manualbp.lectures import figure, setting
from manualbp.parameters import Parameters

EXAMPLES: Mapping[type[AnyLayer], Case] = {
    Dropout: Case("example", Dropout(0.5), (2, 4)),
    Linear: Case("example", Linear(3, 2), (2, 3)),
    Maxout: Case("example", Maxout(3, 2), (2, 3)),
    Residual: Case("example", Residual(Sequential(Linear(2, 2), Tanh())), (2, 2)),
    Sequential: Case("example", Sequential(Linear(2, 3), Tanh(), Linear(3, 1)), (2, 2)),
    Softmax: Case("example", Softmax(), (2, 3)),
}
"""Small cases. An activation function takes two rows of three, another layer its plainest case."""

ON_THE_GRID: Mapping[type[AnyLayer], tuple[tuple[AnyLayer, str, str | None], ...]] = {
    Step: ((Step(), "act.step_ge0", None),),
    Sign: ((Sign(), "act.sign_ge0", None),),
    PiecewiseLinear: (
        (PiecewiseLinear(), "act.piecewise_linear", "dact.piecewise_linear_closed"),
        (PiecewiseLinear(0.0, 0.0), "act.piecewise_linear", "dact.piecewise_linear_open"),
    ),
    Sigmoid: ((Sigmoid(), "act.sigmoid", "dact.sigmoid"),),
    Tanh: ((Tanh(), "act.tanh", "dact.tanh"),),
    TanhHalf: ((TanhHalf(), "act.tanh_half", "dact.tanh_half"),),
    ReLU: (
        (ReLU(), "act.relu", "dact.relu_d0=0"),
        (ReLU(slope_at_zero=1.0), "act.relu", "dact.relu_d0=1"),
    ),
    LeakyReLU: (
        (LeakyReLU(0.1), "act.leaky_relu_0.1", "dact.leaky_relu_0.1_d0=0.1"),
        (LeakyReLU(0.1, slope_at_zero=1.0), "act.leaky_relu_0.1", "dact.leaky_relu_0.1_d0=1"),
    ),
}
"""Activation functions of the lectures, with the figures of their values and slopes."""


def _nothing(page: Page, walk: Walk) -> None:
    pass


@dataclass(frozen=True)
class Written:
    """What the page of a layer says besides the general walk."""

    words: str = ""
    title: str = ""  # instead of the first equation
    rows: tuple[str, ...] = ()
    forward: Callable[[Page, Walk], None] = _nothing
    expected: Callable[[Walk], Any] | None = None  # y in plain Python
    equation: str = ""  # of y
    backward: Callable[[Page, Walk], None] = _nothing
    equations: Mapping[str, str] = field(default_factory=dict[str, str])  # of the gradients
    more: Callable[[Page, Walk], None] = _nothing


def write_layer(page: Page, cls: type[AnyLayer]) -> None:
    """Write the page of a layer."""
    walk = walk_through(example_of(cls), page.seed)
    layer = walk.trial.case.layer
    formula = activation_formula(layer)
    written = WRITTEN.get(cls, Written())
    if formula:
        written = _as_activation(written, formula)
    if written.words:
        page.say(written.words)
    write_equations(page, cls)
    page.heading("Numbers of your own")
    page.say(f"{_described(layer)}, with numbers drawn from --seed {page.seed}.")
    write_given(page, walk)
    page.given("dy", walk["dy"], "∂E/∂y, which comes from the layer above")
    page.heading("Forward")
    written.forward(page, walk)
    expected = written.expected(walk) if written.expected else None
    write_output(page, walk, expected, equation=written.equation)
    page.heading("Backward")
    written.backward(page, walk)
    write_gradients(page, walk, written.equations)
    written.more(page, walk)
    write_details(page, cls)
    write_code(page, cls)
    page.say(f"Beside autograd: manualbp compare --layer {cls.__name__}")


def example_of(cls: type[AnyLayer]) -> Case:
    """Return the case that the page of a layer walks through."""
    if cls in EXAMPLES:
        return EXAMPLES[cls]
    case: Case = plainest(find_cases(cls.__name__))
    return replace(case, shape=(2, 3)) if activation_formula(case.layer) else case


def _described(layer: AnyLayer) -> str:
    """Return the layer as one writes it; what contains layers, without their defaults."""
    match layer:
        case Sequential():
            return f"Sequential({', '.join(map(_described, layer.layers))})"
        case Residual():
            return f"Residual({_described(layer.inner)})"
        case Linear():
            return f"Linear({layer.in_features}, {layer.out_features})"
        case _:
            return str(layer)


# Activation functions -----------------------------------------------------------------------------


def _as_activation(written: Written, formula: Formula) -> Written:
    """Return what is said of an activation function: a positive and a negative x worked out."""

    def forward(page: Page, walk: Walk) -> None:
        for at, x in _one_of_each_sign(walk):
            page.line(
                f"y{at}",
                formula.text.format(x=f"x{at}"),
                _at(walk["y"], at),
                numbers=_put_into(formula.text, x=put(x)),
                equals=formula.value(x),
                because=PLAIN_PYTHON,
            )

    slope = formula.slope_text if " " not in formula.slope_text else f"({formula.slope_text})"

    def backward(page: Page, walk: Walk) -> None:
        for at, x in _one_of_each_sign(walk):
            dy, y = _at(walk["dy"], at), _at(walk["y"], at)
            page.line(
                f"dx{at}",
                f"dy{at} · {slope.format(x=f'x{at}', y=f'y{at}')}",
                _at(walk["dx"], at),
                numbers=f"{put(dy)} · {_put_into(slope, x=put(x), y=put(y))}",
                equals=dy * formula.slope(x),
                because=PLAIN_PYTHON,
            )

    def expected(walk: Walk) -> Any:
        return mapped(formula.value, walk["x"])

    def more(page: Page, walk: Walk) -> None:
        written.more(page, walk)
        _write_grid(page, type(walk.trial.case.layer))

    return replace(
        written,
        forward=forward,
        backward=backward,
        expected=expected,
        equations={"dx": "dy[n,j] · dy/dx[n,j]"},
        more=more,
    )


def _put_into(text: str, **numbers: str) -> str:
    """Return the formula with the numbers; one that is alone in parentheses needs no others."""
    return re.sub(r"\(\((-[\d.e-]+)\)(?=[,)])", r"(\1", text.format(**numbers))


def _one_of_each_sign(walk: Walk) -> list[tuple[str, float]]:
    """Return index and value of the first positive and the first negative x, if there are both."""
    numbers = [(f"[{n},{j}]", x) for n, row in enumerate(walk["x"]) for j, x in enumerate(row)]
    positive = [entry for entry in numbers if entry[1] > 0]
    negative = [entry for entry in numbers if entry[1] < 0]
    return [*positive[:1], *negative[:1]]


def _at(matrix: Any, at: str) -> float:
    n, j = at.strip("[]").split(",")
    return matrix[int(n)][int(j)]


def _write_grid(page: Page, cls: type[AnyLayer]) -> None:
    """Write values and slopes on the grid of the lectures' activation functions."""
    if cls not in ON_THE_GRID:
        return
    page.heading("On the lectures' grid")
    grid = torch.tensor(setting("ACT_GRID")["v"], dtype=torch.float64)
    page.given("x", grid)
    for number, (layer, of_values, of_slopes) in enumerate(ON_THE_GRID[cls]):
        y, dy_dx = values_and_slopes(layer, grid)
        if number == 0:
            page.line("y", "", y, figure=of_values)
        else:
            page.say(f"The slope at a kink is a choice. With {layer}:")
        if of_slopes:
            page.line("dy/dx", "", dy_dx, figure=of_slopes)


def _saturation(page: Page, walk: Walk) -> None:
    layer = walk.trial.case.layer
    largest = 0.25 if isinstance(layer, Sigmoid) else 1.0
    x = torch.tensor([0.0, 1.0, 2.0, 5.0, 10.0], dtype=torch.float64)
    y, slope = values_and_slopes(layer, x)
    page.heading("Saturation")
    page.say(
        """Far from 0 the output hardly moves, and neither does anything below this unit: the factor
        dy/dx is multiplied into every gradient that passes through."""
    )
    rows = list(zip(*(map(float, column) for column in (x, y, slope)), strict=True))
    page.table(["x", "y", "dy/dx"], rows)
    page.claim(
        f"The slope is largest at x = 0, where it is {largest:g}.",
        float(slope[0]) == largest == float(slope.max()),
    )
    page.claim(
        "At x = 10 it is less than a thousandth of that.",
        float(slope[-1]) < largest / 1000,
        f"dy/dx = {float(slope[-1]):.6g}",
    )


def _kink_of_relu(page: Page, walk: Walk) -> None:
    page.heading("A unit that never moves")
    page.say(
        """At exactly 0 the slope may be chosen. It can matter: one unit y = relu(w x) with x = 1,
        w = 0 and t = 1 has its weight on the kink. E = ½ (y - t)², so dE/dw = (y - t) · slope."""
    )
    gradients = [
        float((values_and_slopes(ReLU(choice), torch.zeros(1))[1] * (0.0 - 1.0)).item())
        for choice in (0.0, 1.0)
    ]
    page.line("dE/dw", "(y - t) · slope, for slope 0 and 1", gradients, figure="P.relu0")


# Layers with weights ------------------------------------------------------------------------------


def _linear_forward(page: Page, walk: Walk) -> None:
    x, w, b = walk["x"], walk["weight"], walk["bias"]
    page.line(
        "y[0,1]",
        "Σ_i W[1,i] x[0,i] + b[1]",
        walk["y"][0][1],
        numbers=f"{put_products(w[1], x[0])} + {put(b[1])}",
        equals=dot(w[1], x[0]) + b[1],
        because=PLAIN_PYTHON,
    )


def _linear_backward(page: Page, walk: Walk) -> None:
    x, w, dy = walk["x"], walk["weight"], walk["dy"]
    page.say("Backward along the same weights: each input hears from every unit it has fed.")
    column = [row[2] for row in w]
    page.line(
        "dx[0,2]",
        "Σ_o dy[0,o] W[o,2]",
        walk["dx"][0][2],
        numbers=put_products(dy[0], column),
        equals=dot(dy[0], column),
        because=PLAIN_PYTHON,
    )
    page.say("A weight has had a part in every example of the batch, so its gradient is a sum.")
    errors, inputs = [row[1] for row in dy], [row[2] for row in x]
    page.line(
        "dW[1,2]",
        "Σ_n dy[n,1] x[n,2]",
        walk["dweight"][1][2],
        numbers=put_products(errors, inputs),
        equals=dot(errors, inputs),
        because=PLAIN_PYTHON,
    )
    page.line(
        "db[1]",
        "Σ_n dy[n,1]",
        walk["dbias"][1],
        numbers=" + ".join(map(put, errors)),
        equals=sum(errors),
        because=PLAIN_PYTHON,
    )


def _pieces(walk: Walk) -> list[Any]:
    """Return v[p,n,o] in plain Python."""
    pairs = zip(walk["weight"], walk["bias"], strict=True)
    return [[sums(row, weight, bias) for row in walk["x"]] for weight, bias in pairs]


def _largest_piece(walk: Walk) -> list[list[float]]:
    rows = zip(*_pieces(walk), strict=True)
    return [[max(units) for units in zip(*row, strict=True)] for row in rows]


def _maxout_forward(page: Page, walk: Walk) -> None:
    x, w, b, v = walk["x"][0], walk["weight"], walk["bias"], _pieces(walk)
    for p in (0, 1):
        page.line(
            f"v[{p},0,0]",
            f"Σ_i W[{p},0,i] x[0,i] + b[{p},0]",
            v[p][0][0],
            numbers=f"{put_products(w[p][0], x)} + {put(b[p][0])}",
            equals=_vdot(w[p][0], x) + b[p][0],
            because="a product of vectors",
        )
    page.line(
        "y[0,0]",
        "max_p v[p,0,0]",
        walk["y"][0][0],
        numbers=f"max({v[0][0][0]:.6g}, {v[1][0][0]:.6g})",
        equals=max(v[0][0][0], v[1][0][0]),
        because=PLAIN_PYTHON,
    )


def _maxout_backward(page: Page, walk: Walk) -> None:
    v, dy = _pieces(walk), walk["dy"]
    winner = [0 if v[0][n][0] > v[1][n][0] else 1 for n in (0, 1)]
    page.say(
        f"""Only the winning piece has moved y, so only it hears from above: for unit 0 that is
        piece {winner[0]} in example 0 and piece {winner[1]} in example 1."""
    )
    for p in (0, 1):
        heard = [dy[n][0] if winner[n] == p else 0.0 for n in (0, 1)]
        page.line(
            f"db[{p},0]",
            f"Σ_n dy[n,0] where piece {p} wins",
            walk["dbias"][p][0],
            numbers=" + ".join(map(put, heard)),
            equals=sum(heard),
            because=PLAIN_PYTHON,
        )


def _maxout_more(page: Page, walk: Walk) -> None:
    page.heading("The lecture's two pieces")
    data = setting("MAXOUT")
    layer, x = Maxout(2, 1), torch.tensor(data["x"], dtype=torch.float64)
    params = Parameters.zeros(layer.shapes(), dtype=torch.float64)
    params.views.weight.copy_(torch.tensor([[data["w1"]], [data["w2"]]]))
    params.views.bias.copy_(torch.tensor([[data["b1"]], [data["b2"]]]))
    page.given("x", x, "four inputs")
    page.given("W", params.views.weight.squeeze(1), "one row for each piece")
    page.given("b", params.views.bias.squeeze(1))
    y, saved = layer.forward(params.views, x)
    values, winners = figure("act.maxout").value
    because = "the figure act.maxout"
    page.line("y", "max_p v[p,n]", y.squeeze(1), equals=values, because=because)
    won = saved.share.argmax(0).squeeze(1) + 1
    page.line("winner", "1 or 2", won, equals=winners, because=because)
    page.heading("What it can become")
    page.say("Two pieces are enough for functions that have names of their own:")
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    for weights, name, function in (
        ([1.0, -1.0], "w and -w give |x|", grid.abs()),
        ([1.0, 0.0], "w and 0 give ReLU", _values(ReLU(), grid)),
        ([1.0, 0.1], "w and 0.1 w give leaky ReLU", _values(LeakyReLU(0.1), grid)),
    ):
        unit = Maxout(1, 1, bias=False)
        params = Parameters.zeros(unit.shapes(), dtype=torch.float64)
        params.views.weight.copy_(torch.tensor(weights, dtype=torch.float64).view(2, 1, 1))
        y, _ = unit.forward(params.views, grid)
        worst = float((y - function).abs().max())
        page.claim(name, worst < 1e-15, f"largest difference at nine places: {worst:.2g}")


def _values(function: AnyLayer, x: Tensor) -> Tensor:
    return values_and_slopes(function, x)[0]


# Softmax ------------------------------------------------------------------------------------------


def _softmax_forward(page: Page, walk: Walk) -> None:
    x, y = walk["x"][0], walk["y"][0]
    exps = [exp(v) for v in x]
    page.line(
        "s",
        "Σ_j e^x[0,j]",
        torch.tensor(x, dtype=torch.float64).exp().sum(),
        numbers=" + ".join(f"e^{put(v)}" for v in x),
        equals=sum(exps),
        because=PLAIN_PYTHON,
    )
    page.line(
        "y[0,1]",
        "e^x[0,1] / s",
        y[1],
        numbers=f"{exps[1]:.6g} / {sum(exps):.6g}",
        equals=exps[1] / sum(exps),
        because=PLAIN_PYTHON,
    )


def _softmax_backward(page: Page, walk: Walk) -> None:
    x, y, dy = walk["x"][0], walk["y"][0], walk["dy"][0]
    page.say(
        """Every output depends on every input of its row, so the derivative is a matrix. Step by
        step for row 0:"""
    )
    J = jacobian(Softmax(), torch.tensor(x, dtype=torch.float64))
    plain = [[y[k] * ((k == j) - y[j]) for j in range(len(x))] for k in range(len(x))]
    page.line("J[k,j]", "∂y[k]/∂x[j] = y[k] (δ_kj - y[j])", J, equals=plain, because=PLAIN_PYTHON)
    page.line(
        "dx[0,j]",
        "Σ_k dy[0,k] J[k,j]",
        torch.tensor(dy, dtype=torch.float64) @ J,
        equals=walk["dx"][0],
        because="the layer's backward pass",
    )
    page.say("The matrix need not be built. Put in and summed up, it is one product and one sum:")
    inner = dot(dy, y)
    page.line(
        "a",
        "Σ_k dy[0,k] y[0,k]",
        inner,
        numbers=put_products(dy, y),
        equals=_vdot(dy, y),
        because="a product of vectors",
    )
    page.line(
        "dx[0,1]",
        "y[0,1] (dy[0,1] - a)",
        walk["dx"][0][1],
        numbers=f"{put(y[1])} ({put(dy[1])} - {put(inner)})",
        equals=y[1] * (dy[1] - inner),
        because=PLAIN_PYTHON,
    )


def _vdot(a: list[float], b: list[float]) -> float:
    return float(torch.tensor(a, dtype=torch.float64) @ torch.tensor(b, dtype=torch.float64))


def _softmax_more(page: Page, walk: Walk) -> None:
    page.heading("The lecture's example")
    x = torch.tensor([[1.0, 2.0, 3.0], [1000.0, 1000.0, 999.0]], dtype=torch.float64)
    y, _ = Softmax().forward(Parameters.zeros({}).views, x)
    page.line("y", "softmax(1, 2, 3)", y[0], figure="act.softmax")
    page.line("J", "diag(y) - y yᵀ", jacobian(Softmax(), x[0]), figure="act.softmax_jac")
    page.say(
        """e^1000 is too large for a number. Taking the largest x away from all changes nothing,
        because e^-max cancels, and then no exponential can overflow:"""
    )
    page.line("y", "softmax(1000, 1000, 999)", y[1], figure="act.softmax_big")
    page.heading("Two facts worth knowing")
    rows = [sum(row) for row in walk["y"]]
    page.line("Σ_k y", "one for every row", rows, equals=[1.0] * len(rows), because="probabilities")
    totals = [sum(row) for row in walk["dx"]]
    page.claim(
        """Each row of dx sums to 0: raising all x of a row by the same amount changes no output.
        For dy = 1 throughout dx itself is 0, so such a test would compare nothing.""",
        max(map(abs, totals)) < 1e-15,
        f"the sums here: {', '.join(f'{value:.2g}' for value in totals)}",
    )


# Dropout ------------------------------------------------------------------------------------------


def _mask(walk: Walk) -> Tensor:
    _, saved = walk.trial.forward()
    return saved.mask


def _one_kept_and_one_left_out(walk: Walk) -> list[tuple[int, int]]:
    """Return the first place of each, if there are both."""
    kept = _mask(walk) > 0
    places = [[(int(n), int(j)) for n, j in mask.nonzero()[:1]] for mask in (kept, ~kept)]
    return [place for found in places for place in found]


def _dropout_forward(page: Page, walk: Walk) -> None:
    page.given("m", _mask(walk), "the mask that was drawn: 1/(1-p) = 2, or 0")
    for n, j in _one_kept_and_one_left_out(walk):
        m, x = float(_mask(walk)[n, j]), walk["x"][n][j]
        page.line(
            f"y[{n},{j}]",
            f"m[{n},{j}] x[{n},{j}]",
            walk["y"][n][j],
            numbers=f"{put(m)} · {put(x)}",
            equals=m * x,
            because=PLAIN_PYTHON,
        )


def _dropout_backward(page: Page, walk: Walk) -> None:
    page.say("What was left out has had no part in E; the rest was scaled, and so is its gradient.")
    for n, j in _one_kept_and_one_left_out(walk):
        m, dy = float(_mask(walk)[n, j]), walk["dy"][n][j]
        page.line(
            f"dx[{n},{j}]",
            f"m[{n},{j}] dy[{n},{j}]",
            walk["dx"][n][j],
            numbers=f"{put(m)} · {put(dy)}",
            equals=m * dy,
            because=PLAIN_PYTHON,
        )


def _dropout_more(page: Page, walk: Walk) -> None:
    page.heading("Training and evaluation")
    nothing, x = Parameters.zeros({}).views, walk.trial.inputs.x
    evaluated, _ = Dropout(0.5).forward(nothing, x, mode=EVALUATION)
    page.line("y", "x, without training", evaluated, equals=x, because="x itself")
    count = 100_000
    mode = Mode(training=True, generator=torch.Generator().manual_seed(page.seed))
    ones = torch.ones(count, dtype=torch.float64)
    mean = float(Dropout(0.5).forward(nothing, ones, mode=mode)[0].mean())
    page.say(
        """While training the mean of y is x all the same: (1-p) · x/(1-p) + p · 0 = x. That is what
        the division by 1-p is for; evaluation then needs no change."""
    )
    limit = 5 / count**0.5  # five standard errors, for p = ½
    page.claim(
        "Over 100,000 masks the mean of m is 1, within five standard errors.",
        abs(mean - 1) < limit,
        f"{mean:.5f}, and {limit:.5f} is allowed",
    )


def _masked(walk: Walk) -> list[list[float]]:
    masks: Any = as_numbers(_mask(walk))
    pairs = zip(masks, walk["x"], strict=True)
    return [[m * x for m, x in zip(*pair, strict=True)] for pair in pairs]


# Containers ---------------------------------------------------------------------------------------


def _sequential_in_plain_python(walk: Walk) -> list[Any]:
    """Return h_1, h_2 and h_3 of the example, a row for each x."""
    h_1 = [sums(row, walk["0.weight"], walk["0.bias"]) for row in walk["x"]]
    h_2 = [[tanh(v) for v in row] for row in h_1]
    return [h_1, h_2, [sums(row, walk["2.weight"], walk["2.bias"]) for row in h_2]]


def _sequential_forward(page: Page, walk: Walk) -> None:
    inputs = walk.trial.inputs
    model, params = walk.trial.case.layer, inputs.parameters.views
    assert isinstance(model, Sequential)
    page.say("One layer after the other; h is what the last one has given and the next one gets.")
    equations = ("Σ_i W_1[j,i] x[n,i] + b_1[j]", "tanh h_1[n,j]")
    h = inputs.x
    for l, (equation, plain) in enumerate(
        zip(equations, _sequential_in_plain_python(walk), strict=False), 1
    ):
        h, _ = model.layers[l - 1].forward(params[str(l - 1)], h)
        page.line(f"h_{l}", equation, h, equals=plain, because=PLAIN_PYTHON)


def _sequential_backward(page: Page, walk: Walk) -> None:
    dy, w_1, w_3 = walk["dy"][0], walk["0.weight"], walk["2.weight"]
    h_2 = _sequential_in_plain_python(walk)[1][0]
    dh_2 = [dot(dy, column) for column in zip(*w_3, strict=True)]
    dh_1 = [d * (1 - h * h) for d, h in zip(dh_2, h_2, strict=True)]
    page.say(
        """From the last layer to the first: what a layer hands down is the dy of the one before
        it. For example 0:"""
    )
    page.line(
        "dh_2[0,0]",
        "Σ_o dy[0,o] W_3[o,0]",
        dh_2[0],
        numbers=put_products(dy, [row[0] for row in w_3]),
        equals=_handed_down(walk, 2)[0, 0],
        because="what layer 3 hands down",
    )
    page.line(
        "dh_1[0,0]",
        "dh_2[0,0] (1 - h_2[0,0]²)",
        dh_1[0],
        numbers=f"{put(dh_2[0])} (1 - {put(h_2[0])}²)",
        equals=_handed_down(walk, 1)[0, 0],
        because="what layer 2 hands down",
    )
    column = [row[0] for row in w_1]
    page.line(
        "dx[0,0]",
        "Σ_j dh_1[0,j] W_1[j,0]",
        dot(dh_1, column),
        numbers=put_products(dh_1, column),
        equals=walk["dx"][0][0],
        because="what layer 1 hands down",
    )


def _handed_down(walk: Walk, l: int) -> Tensor:
    """Return ∂E/∂h_l, which the backward pass of layer l + 1 of a Sequential returns."""
    model, inputs = walk.trial.case.layer, walk.trial.inputs
    assert isinstance(model, Sequential)
    params, grads = inputs.parameters.views, inputs.parameters.zeros_like().views
    _, saved = model.forward(params, inputs.x)
    dh = inputs.dy
    for k in reversed(range(l, len(model.layers))):
        dh = model.layers[k].backward(params[str(k)], saved[k], dh, grads[str(k)])
    return dh


def _inner(walk: Walk) -> list[list[float]]:
    """Return f = tanh(W x + b) of the example of Residual, in plain Python."""
    weight, bias = walk["inner.0.weight"], walk["inner.0.bias"]
    return [[tanh(v) for v in sums(row, weight, bias)] for row in walk["x"]]


def _residual_forward(page: Page, walk: Walk) -> None:
    x, w, b = walk["x"][0], walk["inner.0.weight"], walk["inner.0.bias"]
    f = _inner(walk)[0]
    page.line(
        "f[0,0]",
        "tanh(Σ_i W[0,i] x[0,i] + b[0])",
        walk["y"][0][0] - x[0],
        numbers=f"tanh({put_products(w[0], x)} + {put(b[0])})",
        equals=f[0],
        because=PLAIN_PYTHON,
    )
    page.line(
        "y[0,0]",
        "x[0,0] + f[0,0]",
        walk["y"][0][0],
        numbers=f"{put(x[0])} + {put(f[0])}",
        equals=x[0] + f[0],
        because=PLAIN_PYTHON,
    )


def _residual_backward(page: Page, walk: Walk) -> None:
    page.say(
        """x has two ways to y, so dx is a sum: dy as it is, along the way around, and what the
        inner layer makes of dy. Were f flat, dy would still arrive."""
    )
    dy, f, w = walk["dy"][0], _inner(walk)[0], walk["inner.0.weight"]
    da = [d * (1 - v * v) for d, v in zip(dy, f, strict=True)]
    column = [row[0] for row in w]
    page.line(
        "dx[0,0]",
        "dy[0,0] + Σ_j dy[0,j] (1 - f[0,j]²) W[j,0]",
        walk["dx"][0][0],
        numbers=f"{put(dy[0])} + {put_products(da, column)}, with 1 - f² put in",
        equals=dy[0] + dot(da, column),
        because=PLAIN_PYTHON,
    )


WRITTEN: Mapping[type[AnyLayer], Written] = {
    Dropout: Written(
        """While training, every number is left out with probability p, anew in each pass, so that
        no unit can rely on a certain other one. The same mask is used forward and backward.""",
        title="y = m x while training, with m = 0 or 1/(1-p)",
        forward=_dropout_forward,
        expected=_masked,
        equation="m[n,j] x[n,j]",
        backward=_dropout_backward,
        equations={"dx": "m[n,j] dy[n,j]"},
        more=_dropout_more,
    ),
    ELU: Written(
        """Like ReLU for positive x; below 0 it bends towards -α, so that a gradient comes through
        there as well."""
    ),
    GELU: Written(
        """x times the probability Φ(x) that a standard normal number is below it: near 0 for very
        negative x, near x for large ones, and smooth between."""
    ),
    LeakyReLU: Written(
        """ReLU with a small slope for negative x, so that no unit is without a gradient.""",
        rows=("R11",),
    ),
    Linear: Written(
        """Each unit o adds up its inputs, every one with a weight of its own, and adds a bias. From
        this one line follow three: the error signal goes back along the same weights (dx), meets
        the inputs (dW), and is summed over the batch (db).""",
        rows=("R01", "R25"),
        forward=_linear_forward,
        expected=lambda walk: [sums(row, walk["weight"], walk["bias"]) for row in walk["x"]],
        equation="Σ_i W[o,i] x[n,i] + b[o]",
        backward=_linear_backward,
        equations={
            "dx": "Σ_o dy[n,o] W[o,i]",
            "dweight": "Σ_n dy[n,o] x[n,i]",
            "dbias": "Σ_n dy[n,o]",
        },
    ),
    Maxout: Written(
        """Several linear pieces see the same input, and the largest one is the output. Maxout
        learns the shape of its activation function: it is linear in pieces, bent where the winner
        changes.""",
        rows=("R12",),
        forward=_maxout_forward,
        expected=_largest_piece,
        equation="max_p (Σ_i W[p,o,i] x[n,i] + b[p,o])",
        backward=_maxout_backward,
        equations={
            "dx": "Σ_p Σ_o dv[p,n,o] W[p,o,i]",
            "dweight": "Σ_n dv[p,n,o] x[n,i]",
            "dbias": "Σ_n dv[p,n,o]",
        },
        more=_maxout_more,
    ),
    PiecewiseLinear: Written(
        """A sigmoid of three straight pieces: 0, then x, then 1. Between the two kinks dy passes
        unchanged, outside nothing does.""",
        rows=("R07",),
    ),
    ReLU: Written(
        """Lets positive numbers pass and stops the others. So it does with the gradient: where x
        was positive dy passes unchanged, elsewhere nothing does.""",
        rows=("R10",),
        more=_kink_of_relu,
    ),
    Residual: Written(
        """The input goes around the inner layer and is added to what that gives, so f only has to
        learn what to change.""",
        forward=_residual_forward,
        expected=lambda walk: [
            [a + b for a, b in zip(*rows, strict=True)]
            for rows in zip(walk["x"], _inner(walk), strict=True)
        ],
        equation="x[n,j] + f[n,j]",
        backward=_residual_backward,
    ),
    Sequential: Written(
        """Layers one after the other: a network. Forward each one takes what the one before it
        gave; backward each one takes what the one behind it hands down.""",
        title="layers one after the other, h_l = f_l(h_{l-1})",
        rows=("R23", "R24"),
        forward=_sequential_forward,
        expected=lambda walk: _sequential_in_plain_python(walk)[-1],
        equation="Σ_j W_3[o,j] h_2[n,j] + b_3[o]",
        backward=_sequential_backward,
        equations={
            "dx": "Σ_j dh_1[n,j] W_1[j,i]",
            "d0.weight": "Σ_n dh_1[n,j] x[n,i]",
            "d0.bias": "Σ_n dh_1[n,j]",
            "d2.weight": "Σ_n dy[n,o] h_2[n,j]",
            "d2.bias": "Σ_n dy[n,o]",
        },
    ),
    Sigmoid: Written(
        """Squeezes any number to between 0 and 1. Its slope is a function of its output, y (1 - y),
        which is all that the backward pass needs to keep.""",
        rows=("R08",),
        more=_saturation,
    ),
    Sign: Written(
        """The step with outputs -1 and +1. It is flat on both sides, so no gradient comes through;
        see manualbp explain perceptron-and.""",
        rows=("R06",),
    ),
    SiLU: Written(
        """x times its own sigmoid, σ(x) = 1 / (1 + e^-x): near 0 for very negative x, near x for
        large ones, and smooth between."""
    ),
    Softmax: Written(
        """Turns a row of numbers into probabilities: all positive, with sum 1. The larger x, the
        larger its share. With cross-entropy behind it nearly all of the backward pass cancels; see
        manualbp explain cross-entropy.""",
        rows=("R13",),
        forward=_softmax_forward,
        expected=lambda walk: [softmax(row) for row in walk["x"]],
        equation="e^x[n,k] / Σ_j e^x[n,j]",
        backward=_softmax_backward,
        equations={"dx": "y[n,j] (dy[n,j] - Σ_k dy[n,k] y[n,k])"},
        more=_softmax_more,
    ),
    Softplus: Written(
        """A ReLU without a kink: near 0 for very negative x, near x for large ones. Its slope is
        the sigmoid."""
    ),
    Step: Written(
        """Answers with 1 or 0. It is flat on both sides, so no gradient comes through; see manualbp
        explain perceptron-and.""",
        rows=("R06",),
    ),
    Tanh: Written(
        """Squeezes any number to between -1 and 1, and keeps its sign. Its slope is a function of
        its output, 1 - y², which is all that the backward pass needs to keep.""",
        rows=("R09",),
        more=_saturation,
    ),
    TanhHalf: Written(
        """A sigmoid between -1 and 1: tanh with its argument halved, and so with half of its
        slope.""",
        rows=("R09",),
    ),
}


def _register(cls: type[AnyLayer]) -> None:
    written = WRITTEN.get(cls, Written())
    topic(topic_name(cls), topic_title(cls, written.title), *written.rows)(
        lambda page: write_layer(page, cls)
    )


for found in layers():
    _register(found)
