"""The perceptron: AND learned row by row, why it ends, and XOR, where it cannot."""

from __future__ import annotations

from math import sqrt
from typing import Any, cast

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import xor_descent
from manualbp.explain.networks import flat
from manualbp.explain.page import Page, Value
from manualbp.explain.registry import topic
from manualbp.layers import AnyLayer, Linear, Sequential, Step
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters
from manualbp.perceptron import (
    MINUS_PLUS_ONE,
    Learning,
    Number,
    Row,
    Vector,
    largest_margin,
    learn,
    mistake_bound,
    most_right,
)

COLUMNS = ("epoch", "x₁", "x₂", "t", "a", "y", "Δw₁", "Δw₂", "Δb", "w₁", "w₂", "b")


def examples(name: str) -> tuple[list[Vector], list[Number]]:
    """Return inputs and targets of a setting of the lectures: AND, OR, NAND, XOR_PERC, XOR_FEAT."""
    data = setting(name)["data"]
    return [tuple(x) for x, _ in data], [t for _, t in data]


@topic("perceptron-and", "A perceptron learns AND", "R15", "R16")
def perceptron_and(page: Page) -> None:
    """Walk through the table of the lecture, to its end and beyond."""
    x, t = examples("AND")
    learning = learn(x, t)
    _rule(page, learning.rows[0])
    _table(page, learning)
    _ending(page, x, t, learning)
    _signs(page, x, t, learning)
    _rate(page, x, t, learning)
    _others(page, x, t)


def _rule(page: Page, row: Row) -> None:
    page.heading("The unit and its rule")
    page.say(
        """A perceptron adds up its inputs, each times a weight, and answers with 1 or 0. Its step
        has no useful slope, so gradient descent has nothing to go by. The perceptron rule needs
        none: it changes the weights only after a wrong answer, towards the right one."""
    )
    w, b = (0, 0), 0
    page.line(
        "a",
        "a = Σ_i w_i x_i + b",
        row.a,
        numbers=f"{w[0]}·{row.x[0]} + {w[1]}·{row.x[1]} + {b}",
        equals=0,
        because="all weights are zero",
    )
    page.line("y", "y = 1 if a ≥ 0 else 0", row.y, equals=1, because="0 counts as ≥ 0")
    page.line(
        "Δb",
        "Δb = η (t - y)",
        row.db,
        numbers=f"1·({row.target} - {row.y})",
        equals=figure("Z.AND.e1.r1").value[8],
        because="printed, KRZY l.110",
    )
    page.line(
        "Δw_i",
        "Δw_i = η (t - y) x_i",
        row.dw,
        numbers=f"1·({row.target} - {row.y})·({row.x[0]}, {row.x[1]})",
        equals=figure("Z.AND.e1.r1").value[6:8],
        because="printed, KRZY l.110",
    )
    step, none = Step(), Parameters.zeros({}).views
    _, saved = step.forward(none, torch.linspace(-2, 2, 9))
    slopes = step.backward(none, saved, torch.ones(9), none)
    page.claim(
        "The backward pass of a step gives 0 whatever comes in: no gradient can train it.",
        not slopes.any(),
        "dx = 0 at each of 9 points from -2 to 2",
    )


def _table(page: Page, learning: Learning) -> None:
    page.heading("Every row, until nothing changes")
    page.say(
        """The lecture prints the first epoch; here is the rest as well. a and y are found with the
        weights of the row above; w and b are those after the row. The start is zero and η = 1."""
    )
    page.table(COLUMNS, [row.numbers for row in learning.rows])
    same = [
        row.numbers == figure(f"Z.AND.e{row.epoch}.r{row.example}").value for row in learning.rows
    ]
    page.claim(
        "The 4 rows of epoch 1 are those that the lecture prints (KRZY l.110 to l.113).",
        all(same[:4]),
        f"{sum(same[:4])} of 4",
    )
    later = same[4:]
    page.claim("The rows after them agree with the figures.", all(later), f"{sum(later)} of 20")
    page.line(
        "mistakes in each epoch",
        "",
        learning.mistakes,
        figure="Z.AND.mistakes_per_epoch",
    )
    last = [row for row in learning.rows if row.y != row.target][-1]
    page.line(
        "epochs, updates, [epoch, row] of the last update, w₁, w₂, b",
        "",
        cast(Any, [learning.epochs, learning.updates, [last.epoch, last.example], *_wb(learning)]),
        figure="Z.AND.summary",
    )
    page.line(
        "a at the end",
        "a = Σ_i w_i x_i + b",
        [r.a for r in learning.rows[-4:]],
        figure="Z.AND.final_a",
    )
    page.say(
        """The pattern (1, 1) ends exactly on the boundary, a = 0. It is right only because a ≥ 0
        counts as 1: the rule stops as soon as nothing is wrong, not when all is far from wrong."""
    )
    page.picture(
        "perceptron-and",
        "The half plane in which the unit answers 1 (shaded), after each epoch, with the number of "
        "its updates. Filled points should be 1.",
        lambda: _epochs(learning),
    )


def _ending(page: Page, x: list[Vector], t: list[Number], learning: Learning) -> None:
    page.heading("Why it must end")
    best = largest_margin(x, t)
    assert best is not None
    v = [float(n) * sqrt(best.gamma_squared) for n in (*best.w, best.b)]
    bound = mistake_bound(x, t)
    expected = figure("Z.AND.bound").value
    page.say(
        f"""Some units get all examples right, and one of these keeps them farthest from its
        boundary: (w₁, w₂, b) = ({best.w[0]}, {best.w[1]}, {best.b}). Let v be this vector, scaled
        to length 1, and γ its margin: the smallest of ±v · (x, 1), with + where the target is 1."""
    )
    page.line(
        "γ",
        "γ = min_n s_n v · (x_n, 1),  s_n = +1 or -1",
        bound.gamma,
        numbers="1 / √(2² + 2² + 3²)",
        equals=expected[1],
        because="the figure Z.AND.bound",
    )
    page.line(
        "R²",
        "R² = max_n |(x_n, 1)|²",
        bound.radius_squared,
        numbers="1² + 1² + 1²",
        equals=expected[0],
        because="the figure Z.AND.bound",
    )
    page.say(
        """Every update adds at least γ to (w, b) · v, because it adds an example on its right side.
        And it adds at most R² to |(w, b)|², because it follows a mistake, where (w, b) and what is
        added do not point the same way. A length cannot be smaller than its part along v, so after
        k updates k γ ≤ √k R, which is k ≤ (R/γ)²."""
    )
    updates = [row for row in learning.rows if row.y != row.target]
    rows: list[list[float]] = []
    for k, row in enumerate(updates, 1):
        w = [float(n) for n in (*row.w, row.b)]
        along = sum(a * b for a, b in zip(w, v, strict=True))
        rows.append(
            [k, along, k * bound.gamma, sum(n * n for n in w), float(k * bound.radius_squared)]
        )
    page.table(("k", "(w,b)·v", "≥ kγ", "|(w,b)|²", "≤ kR²"), rows, "After each update")
    page.claim(
        "Both hold after every update.",
        all(r[1] >= r[2] - 1e-12 and r[3] <= r[4] for r in rows),
        f"{len(rows)} updates",
    )
    page.line(
        "most updates",
        "(R/γ)²",
        bound.updates,
        numbers="3 · 17",
        equals=expected[2],
        because="the figure Z.AND.bound",
    )
    page.line(
        "updates needed here",
        "",
        learning.updates,
        equals=expected[3],
        because="the figure Z.AND.bound",
    )


def _signs(page: Page, x: list[Vector], t: list[Number], learning: Learning) -> None:
    page.heading("Outputs -1 and +1")
    page.say(
        """With outputs -1 and +1 the difference t - y is -2, 0 or 2, so half of it takes its place:
        Δw_i = η (t - y)/2 x_i, which after a mistake is η t x_i. Nothing else changes."""
    )
    signs = learn(x, [MINUS_PLUS_ONE[int(n)] for n in t], outputs=MINUS_PLUS_ONE)
    page.line(
        "epochs, updates, w₁, w₂, b",
        "",
        _summary(signs),
        figure="Z.AND.pm1",
    )
    page.claim(
        "Weights and bias are the same after every single row.",
        [(r.w, r.b) for r in signs.rows] == [(r.w, r.b) for r in learning.rows],
        f"{len(signs.rows)} rows",
    )


def _rate(page: Page, x: list[Vector], t: list[Number], learning: Learning) -> None:
    page.heading("Why the learning rate does not matter, and why 0.1 does")
    page.say(
        """From a zero start every weight is η times a whole number. A smaller η makes all of a, w
        and b smaller by the same factor, and a ≥ 0 is answered in the same way. Choosing η by
        cross-validation would so compare equals."""
    )
    tenth = learn(x, t, rate=0.1, exact=True)
    expected = figure("Z.AND.eta").value

    def line(name: str, found: Learning, expected: Value) -> None:
        page.line(
            f"epochs, updates with {name}",
            "",
            [found.epochs, found.updates],
            equals=expected,
            because="the figure Z.AND.eta",
        )

    line("η = 1/10, exact", tenth, expected[0])
    page.claim(
        "With η = 1/10 in exact fractions every w and b is a tenth of that with η = 1.",
        [[10 * n for n in (*s.w, s.b)] for s in tenth.states]
        == [[*s.w, s.b] for s in learning.states],
        f"b ends at {tenth.b}",
    )
    rounded = learn(x, t, rate=0.1)
    line("η = 0.1 in float64", rounded, expected[1])
    pairs = list(zip(tenth.rows, rounded.rows, strict=False))
    part = next(n for n, (a, b) in enumerate(pairs) if a.y != b.y)
    exact, other = pairs[part]
    page.table(
        ("arithmetic", "a", "y", "t"),
        [
            ("exact", str(exact.a), exact.y, exact.target),
            ("float64", repr(float(other.a)), other.y, other.target),
        ],
        f"Where the paths part: epoch {exact.epoch}, row {exact.example}",
    )
    page.claim(
        """The computer has no 0.1, only a number close to it. Where a should be exactly 0 a rest of
        rounding decides, and here it decides otherwise.""",
        exact.a == 0 and other.a != 0 and abs(other.a) < 1e-15,
        f"b ends at {rounded.b!r}",
    )
    line("η = 0.5 in float64", learn(x, t, rate=0.5), expected[2])
    page.say("1 and 0.5 are exact in binary, so with them floats and fractions agree.")


def _others(page: Page, x: list[Vector], t: list[Number]) -> None:
    page.heading("Another start, other functions")
    given = setting("AND_INIT2")
    w, b, eta = given["w"], given["b"], given["eta"]
    page.say(
        f"""From another start η does matter, as it weighs the updates against the start. From
        w = ({w[0]}, {w[1]}), b = {b} with η = {eta}, in exact fractions:"""
    )
    other = learn(x, t, rate=eta, weight=w, bias=b, exact=True)
    page.line("epochs, updates, w₁, w₂, b", "", _summary(other), figure="Z.AND.init2")
    bound = mistake_bound(x, t, rate=eta, weight=w, bias=b)
    page.claim(
        "The bound is then (w₀·v + kηγ)² ≤ |w₀|² + kη²R², and holds.",
        other.updates <= bound.updates,
        f"{other.updates} ≤ {bound.updates:.6g}",
    )
    for name in ("OR", "NAND"):
        page.line(
            f"{name}: epochs, updates, w₁, w₂, b",
            "",
            _summary(learn(*examples(name))),
            figure=f"Z.{name}.summary",
        )


@topic("xor", "XOR, which no single unit can do", "R17")
def xor(page: Page) -> None:
    """Show the contradiction, the cycle, and both remedies."""
    x, t = examples("XOR_PERC")
    _impossible(page, x, t)
    _cycle(page, x, t)
    feature = _feature(page)
    hidden = _hidden(page, x, t)
    trained = _trained(page, t)
    page.picture(
        "xor",
        "Where the answer is 1 (shaded): a unit with the feature x₁ x₂, a hidden layer of two "
        "steps, and a trained hidden layer of two sigmoids, cut at 1/2.",
        lambda: _remedies(feature, hidden, trained),
    )


def _impossible(page: Page, x: list[Vector], t: list[Number]) -> None:
    page.heading("Four wishes that contradict each other")
    page.table(
        ("x₁", "x₂", "t", "so we need"),
        [
            (0, 0, 0, "b < 0"),
            (0, 1, 1, "w₂ + b ≥ 0"),
            (1, 0, 1, "w₁ + b ≥ 0"),
            (1, 1, 0, "w₁ + w₂ + b < 0"),
        ],
    )
    page.say(
        """Add the two in the middle: w₁ + w₂ + 2b ≥ 0. Add the other two: w₁ + w₂ + 2b < 0. There
        are no such numbers."""
    )
    signed = [[(1 if wish else -1) * n for n in (*x_n, 1)] for x_n, wish in zip(x, t, strict=True)]
    page.line(
        "Σ_n s_n (x_n, 1), s_n = +1 where t = 1, else -1",
        "",
        [sum(column) for column in zip(*signed, strict=True)],
        numbers="-(0,0,1) + (0,1,1) + (1,0,1) - (1,1,1)",
        equals=[0, 0, 0],
        because="the two sums above have equal left sides",
    )
    right = most_right(x, t)
    page.claim(
        "A search through all choices of examples finds no unit either.",
        largest_margin(x, t) is None,
        "none has a margin above 0",
    )
    page.line(
        "most patterns that one unit gets right",
        "",
        len(right),
        figure="Z.XOR.best",
    )


def _cycle(page: Page, x: list[Vector], t: list[Number]) -> None:
    page.heading("What the learning rule does about it")
    learning = learn(x, t)
    page.say("There is always a mistake, so there is always an update. η = 1, zero start:")
    page.table(COLUMNS, [row.numbers for row in learning.rows])
    page.line(
        "(w₁, w₂, b) after epochs 1, 2 and 3",
        "",
        [[*s.w, s.b] for s in learning.states[1:]],
        figure="Z.XOR.cycle",
    )
    page.claim(
        f"""{str(learning.cycle).capitalize()}. What an epoch does depends on nothing but the state
        it begins with.""",
        learning.cycle == (2, 3),
        f"{learning.mistakes[-1]} mistakes in each epoch",
    )


def _feature(page: Page) -> Learning:
    page.heading("First remedy: a feature made by hand")
    page.say(
        """Give the unit a third input, x₁ x₂. It is 1 for the pattern (1, 1) only, so its weight
        can undo what w₁ and w₂ add up to there. The rule finds such weights by itself."""
    )
    x, t = examples("XOR_FEAT")
    learning = learn(x, t)
    page.line(
        "epochs, updates, [w₁, w₂, w₃], b",
        "",
        cast(Any, [learning.epochs, learning.updates, list(learning.w), learning.b]),
        figure="C.XOR.handcoded",
    )
    page.table(
        ("x₁", "x₂", "x₁x₂", "a", "y", "t"),
        [(*row.x, row.a, row.y, row.target) for row in learning.rows[-4:]],
        "The last epoch",
    )
    page.say("The drawback: somebody had to think of the feature.")
    return learning


def xor_network() -> tuple[Sequential, Parameters]:
    """Return h₁ = step(x₁ + x₂ - ½), h₂ = step(x₁ + x₂ - 1½), y = step(h₁ - h₂ - ½)."""
    model = Sequential(Linear(2, 2), Step(), Linear(2, 1), Step())
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    params.views["0"].weight.fill_(1)
    params.views["0"].bias.copy_(torch.tensor([-0.5, -1.5]))
    params.views["2"].weight.copy_(torch.tensor([[1.0, -1.0]]))
    params.views["2"].bias.fill_(-0.5)
    return model, params


def _hidden(page: Page, x: list[Vector], t: list[Number]) -> tuple[Sequential, Parameters]:
    page.heading("Second remedy: a hidden layer")
    page.say(
        """Let two units come first: h₁ is OR, h₂ is AND. XOR is then "OR, but not AND", which one
        unit can do: h₁ = step(x₁ + x₂ - ½), h₂ = step(x₁ + x₂ - 1½), y = step(h₁ - h₂ - ½)."""
    )
    model, params = xor_network()
    inputs = torch.tensor(x, dtype=torch.float64)
    y, saved = model.forward(params.views, inputs)
    h = saved[2].x
    cells = torch.cat([inputs, h, y, torch.tensor(t).unsqueeze(1)], 1)
    page.table(
        ("x₁", "x₂", "h₁", "h₂", "y", "t"),
        [[int(n) for n in row.unbind()] for row in cells.unbind()],
    )
    page.line("y", "step(h₁ - h₂ - ½)", y.squeeze(1), figure="C.XOR.two_layer")
    page.claim(
        "What was four corners is now three points, and the perceptron rule separates them.",
        learn(h, t).converged,
        f"{learn(h, t).updates} updates",
    )
    return model, params


def _trained(page: Page, t: list[Number]) -> tuple[AnyLayer, Parameters]:
    page.heading("And nobody has to set the hidden layer")
    page.say(
        """The rule cannot train hidden units: it does not know what their right answers are. With
        sigmoids in the place of the steps the error can be sent back to them. From the fourth start
        of the examples, η = 0.5, all four patterns in each update, until E ≤ 0.01:"""
    )
    training = xor_descent(3, SGD(0.5))
    epochs = training.until(0.01, most=2000)
    assert epochs is not None
    page.line(
        "epochs until E = ½ Σ_n (y_n - t_n)² ≤ 0.01",
        "",
        epochs,
        equals=figure("Z.modes.offline_sum.epochs_to_0.01").value,
        because="the figure Z.modes.offline_sum.epochs_to_0.01, to one epoch",
        absolute=1,
    )
    y = flat(training.outputs())
    page.claim(
        "The outputs lie on the right sides of 1/2.",
        [y_n > 0.5 for y_n in y] == [t_n == 1 for t_n in t],
        "y = " + ", ".join(f"{y_n:.3f}" for y_n in y),
    )
    return training.step.model, training.params


def _wb(learning: Learning) -> list[Number]:
    return [*learning.w, learning.b]


def _summary(learning: Learning) -> list[Number]:
    return [learning.epochs, learning.updates, *_wb(learning)]


def _epochs(learning: Learning) -> Picture:
    """Draw the half plane after each epoch."""
    x, t = examples("AND")
    picture = Picture(figsize=(9, 5.6), layout="constrained")
    panels = picture.subplots(2, 3, sharex=True, sharey=True).flat
    for epoch, panel in enumerate(panels, 1):
        _shade(panel, *learning.unit(epoch), _grid())
        _points(panel, x, t)
        w, b = learning.states[epoch]
        updates = learning.mistakes[epoch - 1]
        panel.set_title(f"epoch {epoch}: {updates} updates, w = ({w[0]}, {w[1]}), b = {b}", size=9)
    return picture


def _remedies(
    feature: Learning, hidden: tuple[AnyLayer, Parameters], trained: tuple[AnyLayer, Parameters]
) -> Picture:
    """Draw where each of the three remedies answers 1."""
    x, t = examples("XOR_PERC")
    picture = Picture(figsize=(9, 3.8), layout="constrained")
    left, middle, right = picture.subplots(1, 3, sharex=True, sharey=True)
    grid = _grid()
    with_product = torch.cat([grid, grid.prod(-1, keepdim=True)], -1)
    _shade(left, *feature.unit(), with_product)
    _shade(middle, *hidden, grid)
    _shade(right, *trained, grid)
    for panel, title in ((left, "feature x₁ x₂"), (middle, "hidden steps"), (right, "trained")):
        _points(panel, x, t)
        panel.set_title(title)
    return picture


def _grid() -> Tensor:
    """Return the points of a square around the corners, (401, 401, 2)."""
    axis = torch.linspace(-0.5, 1.5, 401, dtype=torch.float64)
    x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x1, x2], -1)


def _shade(panel: Any, model: AnyLayer, params: Parameters, inputs: Tensor) -> None:
    y, _ = model.forward(params.views, inputs)
    colours = ListedColormap(["#ffffff", "#cfe3f5"])
    panel.imshow(
        (y.squeeze(-1) >= 0.5).numpy(),
        origin="lower",
        extent=(-0.5, 1.5, -0.5, 1.5),
        cmap=colours,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )


def _points(panel: Any, x: list[Vector], t: list[Number]) -> None:
    for x_n, t_n in zip(x, t, strict=True):
        panel.plot(*x_n[:2], "o", ms=8, mec="#1f4e79", mfc="#1f4e79" if t_n else "white")
    panel.set(xlabel="x₁", ylabel="x₂", xticks=[0, 1], yticks=[0, 1])
    panel.label_outer()
