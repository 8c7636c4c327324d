"""Walk a network of one's own: forward, error, backward, update, and every line is checked.

The network has linear units, with an activation function in every hidden layer; its outputs are
linear, which is what the cross-entropies want, unless the values say otherwise. What goes forward
is checked against plain arithmetic, what goes backward against differences of E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from manualbp.checks.differences import central_differences
from manualbp.errors import UsageError, did_you_mean
from manualbp.explain import plain
from manualbp.explain.net_values import Values, read_values
from manualbp.explain.networks import Network, Stage, float64, values_and_slopes
from manualbp.explain.page import CLOSE, Page, as_numbers
from manualbp.explain.plain import PlainLoss
from manualbp.explain.scalar_formulas import Formula, activation_formula
from manualbp.layers import EVALUATION, AnyLayer, Linear, Sequential
from manualbp.losses import (
    AnyLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HalfSquaredError,
    MSELoss,
)
from manualbp.models import ACTIVATIONS, ActivationName
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters
from manualbp.training.step import TrainingStep

LOSSES: Mapping[PlainLoss, AnyLoss] = {
    "half-squared-error": HalfSquaredError(),
    "mse": MSELoss(),
    "cross-entropy": CrossEntropyLoss(),
    "bce": BCEWithLogitsLoss(),
}

KINKS: Mapping[ActivationName, tuple[float, ...]] = {
    "relu": (0.0,),
    "leaky-relu": (0.0,),
    "piecewise-linear": (0.0, 1.0),
}
"""Where an activation function has two slopes."""

MOST_PARAMETERS = 5000
"""Each number of a larger network would have to be moved for the differences: too long a wait."""
MOST_UNITS, MOST_TERMS = 12, 6
"""Up to so many units, over all examples, and terms in their sums a walk goes unit by unit."""


def network_page(net: str, activation: str, loss: str, values: Path | None, seed: int) -> Page:
    """Return the walk over a network such as "3-4-2", as a page.

    Raises UsageError for widths, names or a file that cannot be used.
    """
    widths = _widths(net)
    if activation not in ACTIVATIONS:
        raise UsageError(f"--activation {activation}: {did_you_mean(activation, [*ACTIVATIONS])}")
    if loss not in LOSSES:
        raise UsageError(f"--loss {loss}: {did_you_mean(loss, [*LOSSES])}")
    if loss == "cross-entropy" and widths[-1] == 1:
        raise UsageError(
            f"--loss cross-entropy tells classes apart, but --net {net} has one output: "
            "use --loss bce, or a second output"
        )
    page, name = Page(seed), cast("PlainLoss", loss)
    given = Values() if values is None else read_values(values, widths, name)
    walk(page, widths, cast("ActivationName", activation), name, given)
    return page


def walk(
    page: Page, widths: Sequence[int], activation: ActivationName, loss: PlainLoss, values: Values
) -> None:
    """Write the walk through a network of these widths on the page."""
    net, x, t = _begin(page.seed, widths, activation, loss, values)
    functions = (activation,) * (len(widths) - 2) + (values.output_activation,)
    _Walk(page, net, x, t, loss, functions).write(values.learning_rate)


def _widths(net: str) -> list[int]:
    parts = net.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--net {net}: expected the widths of its layers, inputs first, such as 3-4-2"
        )
    widths = [int(part) for part in parts]
    count = sum((i + 1) * o for i, o in pairwise(widths))
    if count > MOST_PARAMETERS:
        raise UsageError(
            f"--net {net} has {count:,} parameters: a walk takes at most {MOST_PARAMETERS:,}"
        )
    return widths


def _begin(
    seed: int, widths: Sequence[int], activation: ActivationName, loss: PlainLoss, values: Values
) -> tuple[Network, Tensor, Tensor]:
    """Return the network, inputs and targets: as given, or drawn and rounded to two places."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[AnyLayer] = []
    for l, (i, o) in enumerate(pairwise(widths), 1):
        name = activation if l < len(widths) - 1 else values.output_activation
        layers += [Linear(i, o), *([ACTIVATIONS[name]] if name else [])]
    model = Sequential(*layers)
    params = model.parameters(generator, dtype=torch.float64)
    params.flat.copy_(_rounded(params.flat))
    linear = [params.views[str(k)] for k, layer in enumerate(layers) if isinstance(layer, Linear)]
    for l, views in enumerate(linear):
        if values.weights:
            views.weight.copy_(values.weights[l])
        if values.biases:
            views.bias.copy_(values.biases[l])
    x, t = values.inputs, values.targets
    if x is None:
        x = _rounded(torch.randn(1, widths[0], generator=generator, dtype=torch.float64))
    if t is None:
        t = _rounded(torch.rand(len(x), widths[-1], generator=generator, dtype=torch.float64))
        if loss == "bce":
            t = t.round()
        elif loss == "cross-entropy":
            t = torch.eye(widths[-1], dtype=torch.float64)[t.argmax(1)]
    return Network(model, params, LOSSES[loss]), x, t


def _rounded(x: Tensor) -> Tensor:
    return (x * 100).round() / 100


class _Walk:
    """One walk. Layers, units and examples are counted from 1 on the page."""

    def __init__(
        self,
        page: Page,
        net: Network,
        x: Tensor,
        t: Tensor,
        loss: PlainLoss,
        functions: Sequence[ActivationName | None],  # of layers 1 to L
    ) -> None:
        self.page, self.net, self.x, self.t = page, net, x, t
        self.loss: PlainLoss = loss
        self.functions, self.depth = functions, len(functions)
        self.y = net.predict(x)
        error, saved = net.loss.forward(self.y, t)
        self.error, self.saved_error = float(error), saved
        self.dy = net.loss.backward(saved)
        self.stages = net.stages(x, self.dy)
        self.places = [k for k, s in enumerate(self.stages) if isinstance(s.layer, Linear)]
        self.grads = net.params.zeros_like()
        step = TrainingStep(net.model, net.loss, SGD())
        step.add_gradients(net.params, self.grads, x, t, EVALUATION)
        units = len(x) * sum(self.linear(l).y.shape[1] for l in range(1, self.depth + 1))
        terms = max(self.linear(l).x.shape[1] for l in range(1, self.depth + 1))
        self.unit_by_unit = units <= MOST_UNITS and terms <= MOST_TERMS
        self.on_kinks = self.units_on_kinks()

    def write(self, rate: float) -> None:
        """Write all sections."""
        self.given(rate)
        self.page.heading("Forward")
        for l in range(1, self.depth + 1):
            self.forward(l)
        self.page.heading("Error")
        self.squared_error() if self.p is None else self.cross_entropy(self.p)
        self.page.heading("Backward")
        if self.on_kinks:
            self.page.say(
                """A unit stands on a kink, or next to it. There the layer chooses one of the two
                slopes, and the differences follow its choice."""
            )
        self.output_error()
        for l in range(self.depth, 0, -1):
            if l < self.depth:
                self.sent_back_to(l)
            if self.functions[l - 1]:
                self.through_activation(l)
            self.weight_gradients(l)
        self.page.heading("Update")
        self.update(rate)

    # The sections

    def given(self, rate: float) -> None:
        widths = [self.x.shape[1], *(self.linear(l).y.shape[1] for l in range(1, self.depth + 1))]
        layers = [f"{w} {f or 'linear'}" for w, f in zip(widths[1:], self.functions, strict=True)]
        self.page.heading(f"A {'-'.join(map(str, widths))} network")
        self.page.say(
            f"""{widths[0]} inputs, then {", ".join(layers)} units; loss {self.loss}; {len(self.x)}
            example{"s" if self.several else ""}. W1[j,i] is the weight from input i to unit j of
            layer 1; a1 is what arrives at layer 1 and h1 what leaves it. dX stands for ∂E/∂X."""
        )
        if self.several:
            self.page.say("n counts the examples, one in a row.")
        alone = not self.several
        self.page.given("x", self.x[0] if alone else self.x, "inputs")
        self.page.given("t", self.t[0] if alone else self.t, "targets")
        for l in range(1, self.depth + 1):
            weight, bias = self.parameters(l)
            self.page.given(f"W{l}", weight, "a row for each unit")
            self.page.given(f"b{l}", bias)
        self.page.given("η", rate, "learning rate")

    def forward(self, l: int) -> None:
        weight, bias = self.parameters(l)
        stage, w, b = self.linear(l), _rows(weight), _row(bias)
        x = _rows(stage.x)

        def put_in(n: int, j: int) -> str:
            products = [f"{_n(v)}·{_n(h)}" for v, h in zip(w[j], x[n], strict=True)]
            return " + ".join([*products, _n(b[j])])

        # A sum whose terms nearly cancel is as exact as they are.
        terms = float((stage.x.abs() @ weight.abs().T + bias.abs()).max())
        self.lines(
            f"a{l}",
            f"Σ_i W{l}[{{j}},i] {self.into(l)}[{{n}}i] + b{l}[{{j}}]",
            stage.y,
            put_in,
            [plain.sums(row, w, b) for row in x],
            absolute=CLOSE * terms,
        )
        name = self.functions[l - 1]
        if name:
            formula, a = _formula(name), _rows(stage.y)
            self.lines(
                self.out_of(l),
                _with(formula.text, f"a{l}[{{n}}{{j}}]"),
                self.stages[self.places[l - 1] + 1].y,
                lambda n, j: _with(formula.text, _n(a[n][j])),
                [[formula.value(v) for v in row] for row in a],
            )

    def squared_error(self) -> None:
        pairs = zip(_row(self.y.flatten()), _row(self.t.flatten()), strict=True)
        terms = " + ".join(f"({_n(y)} - {_n(t)})²" for y, t in pairs)
        scale = "½" if self.loss == "half-squared-error" else f"1/{self.t.numel()}"
        y = self.out_of(self.depth)
        equation = f"{scale} Σ_n Σ_k ({y}[n,k] - t[n,k])²"
        self.error_line(equation, f"{scale} ({terms})")

    def cross_entropy(self, p: Tensor) -> None:
        a, rows = self.out_of(self.depth), _rows(self.y)
        if self.loss == "bce":
            self.lines(
                "p",
                f"1 / (1 + e^(-{a}[{{n}}{{j}}]))",
                p,
                lambda n, j: f"1 / (1 + e^(-{_n(rows[n][j])}))",
                [[plain.sigmoid(v) for v in row] for row in rows],
            )
        else:
            self.lines(
                "p",
                f"e^{a}[{{n}}{{j}}] / Σ_k e^{a}[{{n}}k]",
                p,
                lambda n, j: f"e^{_n(rows[n][j])} / ({' + '.join(f'e^{_n(v)}' for v in rows[n])})",
                [plain.softmax(row) for row in rows],
            )
        terms: list[str] = []
        for p_k, t_k in zip(_row(p.flatten()), _row(self.t.flatten()), strict=True):
            if t_k > 0:
                terms.append(f"{_n(t_k)}·log {_n(p_k)}")
            if t_k < 1 and self.loss == "bce":
                terms.append(f"{_n(1 - t_k)}·log(1 - {_n(p_k)})")
        term = "t[n,k] log p[n,k]"
        if self.loss == "bce":
            term = f"({term} + (1 - t[n,k]) log(1 - p[n,k]))"
        scale = f"{self.mean_of} " if self.mean_of else ""
        self.error_line(f"-{scale}Σ_n Σ_k {term}", f"-{scale}({' + '.join(terms)})")

    def error_line(self, equation: str, numbers: str) -> None:
        self.page.line(
            "E",
            equation,
            self.error,
            numbers=numbers if self.unit_by_unit else "",
            equals=plain.error(self.loss, _rows(self.y), _rows(self.t)),
            because="plain arithmetic",
            absolute=CLOSE,
        )

    def output_error(self) -> None:
        name = self.out_of(self.depth)
        left, values = (name, self.y) if self.p is None else ("p", self.p)
        pattern = f"{left}[{{n}}{{j}}] - t[{{n}}{{j}}]"
        front = "2 " if self.loss == "mse" else ""
        if self.mean_of:
            front = f"{front or '1'}".strip() + self.mean_of[1:] + " "

        def put_in(n: int, j: int) -> str:
            return in_front(f"{_n(float(values[n, j]))} - {_n(float(self.t[n, j]))}")

        def in_front(difference: str) -> str:
            return f"{front}({difference})" if front else difference

        expected = self.differences_at(len(self.stages))
        self.lines(f"d{name}", in_front(pattern), self.dy, put_in, expected, backward=True)

    def sent_back_to(self, l: int) -> None:
        above, w = self.linear(l + 1), _rows(self.parameters(l + 1)[0])
        da = _rows(above.dy)
        self.lines(
            f"dh{l}",
            f"Σ_k da{l + 1}[{{n}}k] W{l + 1}[k,{{j}}]",
            above.dx,
            lambda n, j: " + ".join(
                f"{_n(d)}·{_n(row[j])}" for d, row in zip(da[n], w, strict=True)
            ),
            self.differences_at(self.places[l]),
            backward=True,
        )

    def through_activation(self, l: int) -> None:
        stage = self.stages[self.places[l - 1] + 1]
        _, slopes = values_and_slopes(stage.layer, stage.x)
        self.lines(
            f"da{l}",
            f"d{self.out_of(l)}[{{n}}{{j}}] f'(a{l}[{{n}}{{j}}])",
            stage.dx,
            lambda n, j: f"{_n(float(stage.dy[n, j]))}·{_n(float(slopes[n, j]))}",
            self.differences_at(self.places[l - 1] + 1),
            backward=True,
        )

    def weight_gradients(self, l: int) -> None:
        stage, (weight, bias) = self.linear(l), self.parameters(l)
        grads = self.grads.views[str(self.places[l - 1])]
        expected = self.differences_by_parameter(weight)
        n, total = ("n,", "Σ_n ") if self.several else ("", "")
        equation = f"{total}da{l}[{n}{{j}}] {self.into(l)}[{n}i]"
        if self.unit_by_unit:
            for j in range(len(weight)):
                terms = [
                    f"{_n(float(d))}·[{', '.join(f'{v:.6g}' for v in _row(h))}]"
                    for d, h in zip(stage.dy[:, j], stage.x, strict=True)
                ]
                self.backward_line(
                    f"dW{l}[{j + 1},i]",
                    equation.format(j=j + 1),
                    grads.weight[j],
                    expected[j],
                    " + ".join(terms),
                )
        else:
            self.backward_line(f"dW{l}[j,i]", equation.format(j="j"), grads.weight, expected)
        expected = self.differences_by_parameter(bias)
        self.backward_line(f"db{l}[j]", f"{total}da{l}[{n}j]", grads.bias, expected)

    def update(self, rate: float) -> None:
        self.page.say("Only now, with all gradients known, the weights change; η is the rate.")
        after = self.net.copy()
        before, error = after.descent(self.x, self.t, SGD(rate)).errors(1)
        for l in range(1, self.depth + 1):
            place = str(self.places[l - 1])
            for symbol, kind in (("W", "weight"), ("b", "bias")):
                self.page.line(
                    f"new {symbol}{l}",
                    f"{symbol}{l} - η d{symbol}{l}",
                    after.params.named()[f"{place}.{kind}"],
                    equals=_moved(
                        as_numbers(self.net.params.named()[f"{place}.{kind}"]),
                        as_numbers(self.grads.named()[f"{place}.{kind}"]),
                        rate,
                    ),
                    because="plain arithmetic",
                )
        self.page.line(
            "new E",
            "E of the new weights",
            error,
            equals=plain.error(self.loss, self.plain_outputs(after.params), _rows(self.t)),
            because="plain arithmetic through all layers",
            tolerance=1e-10,
            absolute=CLOSE,
        )
        if error < before:
            self.page.say(f"The error falls from {before:.6g} to {error:.6g}.")
        else:
            self.page.say(
                f"""The error was {before:.6g} and is {error:.6g}: it does not fall. Unless the
                gradient is 0, a smaller learning rate makes it fall."""
            )

    # How a line is written

    def lines(
        self,
        name: str,
        equation: str,
        value: Tensor,
        put_in: Callable[[int, int], str],
        expected: Any,
        *,
        backward: bool = False,
        absolute: float = 0.0,
    ) -> None:
        """Write a line for each unit of each example, or one for the whole matrix (N, units).

        {n} and {j} in the equation stand for the example and the unit.
        """
        checked = float64(expected) if isinstance(expected, list) else cast("Tensor", expected)
        if not self.unit_by_unit:
            whole = equation.format(n="n,", j="j")
            self.one_line(f"{name}[n,j]", whole, value, checked, "", backward, absolute)
            return
        for n in range(len(value)):
            at = f"{n + 1}," if self.several else ""
            for j in range(value.shape[1]):
                result, right = value[n, j], checked[n, j]
                filled = equation.format(n=at, j=j + 1)
                where = f"{name}[{at}{j + 1}]"
                self.one_line(where, filled, result, right, put_in(n, j), backward, absolute)

    def one_line(
        self,
        name: str,
        equation: str,
        value: Tensor,
        expected: Tensor,
        numbers: str,
        backward: bool,
        absolute: float,
    ) -> None:
        if backward:
            self.backward_line(name, equation, value, expected, numbers)
            return
        self.page.line(
            name,
            equation,
            value,
            numbers=numbers,
            equals=expected,
            because="plain arithmetic",
            absolute=absolute,
        )

    def backward_line(
        self, name: str, equation: str, value: Tensor, expected: Tensor, numbers: str = ""
    ) -> None:
        self.page.line(
            name,
            equation,
            value,
            numbers=numbers,
            equals=expected,
            because="central differences",
            tolerance=1e-5,
            absolute=1e-9 * max(1.0, self.error),  # rounding in E, over a step of 1e-6
        )

    # What the lines are about

    @property
    def several(self) -> bool:
        return len(self.x) > 1

    @property
    def p(self) -> Tensor | None:
        """Return softmax(a) or σ(a) where the loss is a cross-entropy."""
        if self.loss == "cross-entropy":
            return self.saved_error.p
        return self.saved_error.x.sigmoid() if self.loss == "bce" else None

    @property
    def mean_of(self) -> str:
        """Return "1/M" where E is the mean of M > 1 terms, else nothing."""
        if self.loss == "half-squared-error":
            return ""
        count = len(self.x) if self.loss == "cross-entropy" else self.t.numel()
        return f"1/{count}" if count > 1 else ""

    def linear(self, l: int) -> Stage:
        return self.stages[self.places[l - 1]]

    def parameters(self, l: int) -> tuple[Tensor, Tensor]:
        views = self.net.params.views[str(self.places[l - 1])]
        return views.weight, views.bias

    def into(self, l: int) -> str:
        return "x" if l == 1 else f"h{l - 1}"

    def out_of(self, l: int) -> str:
        if l < self.depth:
            return f"h{l}"
        return "y" if self.functions[-1] else f"a{l}"

    # What they are checked against

    def error_from(self, k: int, h: Tensor) -> Tensor:
        """Return E where h comes into stage k, from 0, or out of the last one.

        No difference reaches over a kink: a unit that stands on one goes along its tangent, with
        the slope that its layer has chosen there.
        """
        for stage in self.stages[k:]:
            views = self.net.params.views[str(k)]
            y, _ = stage.layer.forward(views, h, mode=EVALUATION)
            if k in self.on_kinks:
                _, slopes = values_and_slopes(stage.layer, stage.x)
                y = torch.where(self.on_kinks[k], stage.y + slopes * (h - stage.x), y)
            h, k = y, k + 1
        return self.net.loss.forward(h, self.t)[0]

    def differences_by_parameter(self, v: Tensor) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        return central_differences(lambda: self.error_from(0, self.x), v, one)

    def differences_at(self, k: int) -> Tensor:
        """Return ∂E/∂(what comes into stage k)."""
        one = torch.ones((), dtype=torch.float64)
        v = (self.stages[k].x if k < len(self.stages) else self.y).clone()
        return central_differences(lambda: self.error_from(k, v), v, one)

    def units_on_kinks(self) -> dict[int, Tensor]:
        """Return, by stage, which units differences could move over a kink (N, units)."""
        sizes = [float(stage.x.abs().max()) for stage in self.stages]
        margin = 1e-5 * max(1.0, *sizes, float(self.net.params.flat.abs().max())) ** 2
        found: dict[int, Tensor] = {}
        for place, name in zip(self.places, self.functions, strict=True):
            for kink in KINKS.get(name, ()) if name else ():
                near = (self.stages[place].y - kink).abs() < margin
                if near.any():
                    found[place + 1] = near | found.get(place + 1, near)
        return found

    def plain_outputs(self, params: Parameters) -> list[list[float]]:
        rows = _rows(self.x)
        for place, name in zip(self.places, self.functions, strict=True):
            views = params.views[str(place)]
            rows = [plain.sums(row, _rows(views.weight), _row(views.bias)) for row in rows]
            if name:
                rows = [[_formula(name).value(v) for v in row] for row in rows]
        return rows


def _moved(w: Any, dw: Any, rate: float) -> Any:
    """Return w - η dw, of numbers or lists of them."""
    if isinstance(w, float):
        return w - rate * dw
    return [_moved(w_j, dw_j, rate) for w_j, dw_j in zip(w, dw, strict=True)]


def _formula(name: ActivationName) -> Formula:
    formula = activation_formula(ACTIVATIONS[name])
    assert formula is not None, f"{name} has no formula"
    return formula


def _with(text: str, x: str) -> str:
    """Return the text of an activation function with something put in."""
    bare = x.removeprefix("(").removesuffix(")")
    return text.replace("({x},", f"({bare},").replace("{x}", x)


def _rows(matrix: Tensor) -> list[list[float]]:
    return cast("list[list[float]]", as_numbers(matrix))


def _row(vector: Tensor) -> list[float]:
    return cast("list[float]", as_numbers(vector))


def _n(value: float) -> str:
    """Return a number as it is put into an equation: six digits, in brackets if it is negative."""
    return f"({value:.6g})" if value < 0 else f"{value:.6g}"
