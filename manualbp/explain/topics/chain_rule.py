"""The chain rule: for numbers, on a computational graph, for vectors, and through layers.

Source: Kandemir, "computational graph" and "chain rule"; Krzywicki, the chain rule's example.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, exp, sin

from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.checks.differences import central_differences
from manualbp.explain.graphs import (
    Node,
    activation,
    derivatives,
    function,
    in_order,
    product,
    total,
    variable,
)
from manualbp.explain.networks import float64, jacobian, network, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart
from manualbp.explain.registry import topic
from manualbp.layers import Sigmoid
from manualbp.lectures import figure, setting

ONE = float64([1.0])


@topic("chain-rule", "The chain rule: numbers, graphs, vectors, layers", "R14")
def chain_rule(page: Page) -> None:
    """Write the chain rule from one number to whole layers."""
    _numbers(page)
    _graph(page)
    _vectors(page)
    _layers(page)


def _numbers(page: Page) -> None:
    page.heading("One number after the other")
    page.say(
        """If y depends on u and u on x, a small change of x is multiplied twice on its way to y:
        dy/dx = dy/du · du/dx. For y = e^(4x²) put u = 4x²."""
    )
    x = variable("x", 0.3)
    u = product("4x²", variable("4", 4.0), x, x)
    y = function("e^u", u, exp(u.value), exp(u.value))
    page.given("x", x.value)
    page.line("u", "4 x²", u.value, numbers="4 · 0.3²", equals=0.36, because="4 · 0.09")
    v = float64([x.value])
    slope = central_differences(lambda: 4 * v * v, v, ONE)
    page.line(
        "du/dx",
        "8 x",
        derivatives(u)[x],
        numbers="8 · 0.3",
        equals=slope.item(),
        because="central differences",
        tolerance=1e-8,
    )
    page.line("dy/du", "e^u", derivatives(y)[u], numbers="e^0.36", equals=y.value, because="y")
    page.line(
        "dy/dx",
        "e^u · 8 x",
        derivatives(y)[x],
        numbers=f"{y.value:.6g} · 2.4",
        figure="Z.chain_example",
    )
    page.say(
        """The sigmoid is such a chain too: s = 1/u, u = 1 + e^-x. So
        ds/dx = -1/u² · (-e^-x), in which two minus signs make a plus, and that is s (1 - s)."""
    )
    half = float64([0.5])
    s, ds = (value.item() for value in values_and_slopes(Sigmoid(), half))
    known = figure("Z.sigmoid_derivative").value
    page.line(
        "ds/dx",
        "s (1 - s)",
        ds,
        numbers=f"{s:.6g} · {1 - s:.6g}, at x = 0.5",
        equals=known[3],
        because="the figure Z.sigmoid_derivative",
    )
    e = exp(-0.5)
    page.line(
        "the same",
        "+e^-x / (1 + e^-x)²",
        e / (1 + e) ** 2,
        numbers=f"{e:.6g} / {1 + e:.6g}²",
        equals=ds,
        because="s (1 - s)",
    )
    slope = central_differences(lambda: values_and_slopes(Sigmoid(), half)[0], half, ONE)
    page.claim(
        "The lecture prints this with a minus in the middle; the slope of the sigmoid is positive.",
        slope.item() > 0 > known[2] and abs(slope.item() - ds) < 1e-9,
        f"differences give {slope.item():.9g}",
    )


def _graph(page: Page) -> None:
    given = setting("KAND_1HIDDEN")
    inputs, weights = given["x"], [row[0] for row in given["W1"]]
    page.heading("A graph of operations: the perceptron")
    page.say(
        """Any formula can be drawn as boxes, each with one primitive operation. A unit with n
        inputs is n products, one sum and one σ. A box needs to know two things only: its value, and
        its slope for each of its inputs."""
    )
    page.given("x", inputs, "the inputs")
    page.given("w", weights, "the weights")
    x, w, h = perceptron_graph(inputs, weights)
    (f,) = h.inputs
    known = figure("K.graph").value
    lines: list[tuple[str, str, float | list[float], str]] = [
        ("products", "w[i] x[i]", [p.value for p in f.inputs], "[0.1 · 1, 0.3 · 2, -0.5 · 3]"),
        ("f", "Σ_i w[i] x[i]", f.value, "0.1 + 0.6 - 1.5"),
        ("h", "σ(f)", h.value, "1 / (1 + e^0.8)"),
    ]
    because = "the figure K.graph"
    for (name, equation, value, numbers), expected in zip(lines, known, strict=False):
        page.line(name, equation, value, numbers=numbers, equals=expected, because=because)
    page.say(
        """Now backward. Write ∂h/∂(box) at every box, beginning with 1 at h. A box hands to each of
        its inputs what it got itself, times the slope for that input; where a box is used twice,
        what arrives is added: ∂h/∂a = Σ_b ∂h/∂b · ∂b/∂a."""
    )
    dh = derivatives(h)
    page.table(
        ("box", "value", "∂h/∂box"),
        [(node.name, node.value, dh[node]) for node in reversed(in_order(h))],
    )
    slope = h.slopes[0]
    page.line(
        "∂h/∂w[i]",
        "σ'(f) x[i]",
        [dh[node] for node in w],
        numbers=f"{slope:.6g} · {inputs}",
        equals=known[3],
        because=because,
    )
    page.line(
        "∂h/∂x[i]",
        "σ'(f) w[i]",
        [dh[node] for node in x],
        numbers=f"{slope:.6g} · {weights}",
        equals=known[4],
        because=because,
    )
    unit = network([[[i] for i in weights]], output=Sigmoid())
    row, one = float64([inputs]), float64([[1.0]])
    page.line(
        "the layers' own pass",
        "Linear, then Sigmoid",
        unit.pull_back(row, one)[0].view(-1),
        equals=[dh[node] for node in w],
        because="the graph",
    )
    page.picture(
        "graph",
        "The graph of a perceptron: values in black, ∂h/∂(box) in red.",
        lambda: draw_graph(h),
    )


def _vectors(page: Page) -> None:
    given = setting("KAND_CHAIN")["x"]
    page.heading("Vectors: the Jacobian")
    page.say(
        """If y depends on several u_j, and each of them on several x_i, the ways add up:
        ∂y/∂x_i = Σ_j ∂y/∂u_j · ∂u_j/∂x_i. The slopes ∂u_j/∂x_i make a matrix, the Jacobian, with
        a row for each u and a column for each x. So the sum is a row vector times a matrix. For
        u = (x_1 x_2, x_1 + x_2, sin x_1) and y = u_1² + u_2 u_3:"""
    )
    page.given("x", given)
    x1, x2 = (variable(f"x_{i}", value) for i, value in enumerate(given, 1))
    u1, u2 = product("u_1", x1, x2), total("u_2", x1, x2)
    u3 = function("u_3", x1, sin(x1.value), cos(x1.value))
    y = total("y", product("u_1²", u1, u1), product("u_2 u_3", u2, u3))
    rows = [derivatives(u) for u in (u1, u2, u3)]
    du_dx = [[row.get(x, 0.0) for x in (x1, x2)] for row in rows]
    dy = derivatives(y)
    dy_du = [dy[u] for u in (u1, u2, u3)]
    known = figure("K.chain").value
    because = "the figure K.chain"
    page.line(
        "∂u_j/∂x_i",
        "[[x_2, x_1], [1, 1], [cos x_1, 0]]",
        du_dx,
        equals=known[0],
        because=because,
    )
    page.line(
        "∂y/∂u_j",
        "[2 u_1, u_3, u_2]",
        dy_du,
        numbers=f"[2 · ({u1.value}), {u3.value:.6g}, {u2.value}]",
        equals=known[1],
        because=because,
    )
    page.line(
        "∂y/∂x_i",
        "Σ_j ∂y/∂u_j ∂u_j/∂x_i",
        float64(dy_du) @ float64(du_dx),
        equals=known[2],
        because=because,
    )
    page.line(
        "the same",
        "the graph of y, walked backward",
        [dy[x1], dy[x2]],
        equals=known[2],
        because=because,
    )


def _layers(page: Page) -> None:
    given = setting("KAND_1HIDDEN")
    net = network([given["W1"], [[w] for w in given["w2"]]], Sigmoid())
    x = float64(given["x"])
    page.heading("Layers: Jacobians multiply")
    page.say(
        """A net is a chain of layers, so its Jacobian is the product of theirs. With
        ŷ = w_2ᵀ σ(W_1ᵀ x), the factors are w_2ᵀ, diag(σ'(f)) and W_1ᵀ:"""
    )
    row, one = x.unsqueeze(0), float64([[1.0]])
    stages = net.stages(row, one)
    factors = [jacobian(s.layer, s.x[0], net.params.views[str(l)]) for l, s in enumerate(stages)]
    h = stages[1].y[0]
    formulas: list[tuple[str, str, Tensor]] = [
        ("∂f/∂x", "W_1ᵀ", net.matrices[0].T),
        ("∂h/∂f", "diag(σ'(f))", (h * (1 - h)).diag()),
        ("∂ŷ/∂h", "w_2ᵀ", net.matrices[1].T),
    ]
    for (name, equation, expected), J in zip(formulas, factors, strict=True):
        page.line(name, equation, J, equals=expected, because="the formula")
    whole = factors[2] @ factors[1] @ factors[0]
    differences = central_differences(lambda: net.predict(row), row, one)
    page.line(
        "∂ŷ/∂x",
        "w_2ᵀ diag(σ'(f)) W_1ᵀ",
        whole,
        equals=differences,
        because="central differences of ŷ",
        absolute=1e-9,
    )
    page.say(
        """Multiplied from the left, there is a row vector at every moment and never a product of
        two matrices. That is backpropagation: a layer is handed a row, ∂E/∂y, and hands on that row
        times its Jacobian, which it need not even write down. For σ it is a product number by
        number."""
    )
    page.line(
        "handed down",
        "((1 w_2ᵀ) diag(σ'(f))) W_1ᵀ",
        stages[0].dx,
        equals=whole,
        because="the product of the Jacobians",
    )


def perceptron_graph(
    inputs: Sequence[float], weights: Sequence[float]
) -> tuple[list[Node], list[Node], Node]:
    """Return the boxes of the inputs, of the weights, and of h = σ(Σ_i w[i] x[i])."""
    x = [variable(f"x[{i}]", value) for i, value in enumerate(inputs, 1)]
    w = [variable(f"w[{i}]", value) for i, value in enumerate(weights, 1)]
    products = [product(f"{a.name} {b.name}", a, b) for a, b in zip(w, x, strict=True)]
    return x, w, activation("h = σ(f)", Sigmoid(), total("f", *products))


def draw_graph(y: Node) -> Picture:
    """Draw the boxes in columns, each to the right of all its inputs."""
    order, dy = in_order(y), derivatives(y)
    column: dict[Node, int] = {}
    for node in order:
        column[node] = 1 + max((column[a] for a in node.inputs), default=-1)
    place: dict[Node, tuple[float, float]] = {}
    for c in range(max(column.values()) + 1):
        nodes = [node for node in order if column[node] == c]
        for i, node in enumerate(nodes):
            place[node] = (2.0 * c, (len(nodes) - 1) / 2 - i)
    picture, axes = chart(9, 5)
    # An arrow begins and ends beside the boxes.
    arrow = {"arrowstyle": "->", "color": "0.5", "shrinkA": 22, "shrinkB": 30}
    for b in order:
        for a in b.inputs:
            axes.annotate("", place[b], place[a], arrowprops=arrow)
    for node, (left, up) in place.items():
        axes.text(
            left,
            up,
            f"{node.name}\n{node.value:.4g}",
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.4"},
        )
        axes.text(left, up - 0.37, f"{dy[node]:.4g}", ha="center", va="center", color="tab:red")
    axes.set(xlim=(-0.8, 2 * max(column.values()) + 0.8), ylim=(-3.2, 2.9))
    axes.set_axis_off()
    return picture
