"""R14: computational graphs; the chain rule for numbers and vectors; the Jacobian (KAND, KRZY)."""

from math import cos, exp, sin

import pytest
import torch

from manualbp.checks.differences import central_differences
from manualbp.explain.graphs import (
    activation,
    derivatives,
    function,
    in_order,
    product,
    total,
    variable,
)
from manualbp.explain.networks import float64, jacobian, network, values_and_slopes
from manualbp.layers import Sequential, Sigmoid, Tanh
from manualbp.lectures import setting

NET = setting("KAND_1HIDDEN")
X, UNIT = NET["x"], [row[0] for row in NET["W1"]]


@pytest.mark.figures("K.graph")
def test_graph_of_a_perceptron(lecture):
    """n products, one sum, one σ."""
    x = [variable(f"x{i}", value) for i, value in enumerate(X, 1)]
    w = [variable(f"w{i}", value) for i, value in enumerate(UNIT, 1)]
    products = [product("w x", *pair) for pair in zip(w, x, strict=True)]
    f = total("f", *products)
    h = activation("h", Sigmoid(), f)
    dh = derivatives(h)
    figure = [[p.value for p in products], f.value, h.value, [dh[i] for i in w], [dh[i] for i in x]]
    lecture.expect("K.graph", figure)

    # the layers of the heart say the same
    unit = network([[[i] for i in UNIT]], output=Sigmoid())
    row, one = float64([X]), float64([[1.0]])
    lecture.expect(
        "K.graph",
        [
            *figure[:2],
            unit.predict(row).item(),
            *(unit.pull_back(row, one)[0].view(-1), unit.stages(row, one)[0].dx.view(-1)),
        ],
    )


def vector_chain(x1, x2):
    """u(x) = (x1 x2, x1 + x2, sin x1),  y(u) = u1² + u2 u3"""
    u = [product("u1", x1, x2), total("u2", x1, x2)]
    u.append(function("u3", x1, sin(x1.value), cos(x1.value)))
    return u, total("y", product("u1²", u[0], u[0]), product("u2 u3", u[1], u[2]))


@pytest.mark.figures("K.chain")
def test_chain_rule_for_vectors(lecture):
    x = [variable(f"x{i}", value) for i, value in enumerate(setting("KAND_CHAIN")["x"], 1)]
    u, y = vector_chain(*x)
    rows = [derivatives(u_j) for u_j in u]
    du_dx = [[row.get(x_i, 0.0) for x_i in x] for row in rows]  # u3 does not depend on x2
    dy = derivatives(y)
    dy_du, dy_dx = [dy[u_j] for u_j in u], [dy[x_i] for x_i in x]
    lecture.expect("K.chain", [du_dx, dy_du, dy_dx])
    assert (float64(dy_du) @ float64(du_dx)).tolist() == pytest.approx(dy_dx, rel=1e-14)


@pytest.mark.figures("Z.chain_example")
def test_chain_rule_for_numbers(lecture):
    """d/dx e^(4x²) = 8x e^(4x²)"""
    x, four = variable("x", 0.3), variable("4", 4.0)
    u = product("4x²", four, x, x)
    y = function("e^u", u, exp(u.value), exp(u.value))
    lecture.expect("Z.chain_example", derivatives(y)[x])
    assert derivatives(u)[x] == pytest.approx(8 * 0.3, rel=1e-15)


@pytest.mark.figures("Z.sigmoid_derivative")
def test_derivative_of_the_sigmoid(lecture):
    """ds/dx = +e^-x/(1+e^-x)² = s(1-s); the printed middle term has the wrong sign."""
    x = float64([0.5])
    s, slope = values_and_slopes(Sigmoid(), x)
    differences = central_differences(lambda: values_and_slopes(Sigmoid(), x)[0], x, float64([1.0]))
    middle = ((-x).exp() / (1 + (-x).exp()) ** 2).item()
    found = [differences.item(), slope.item(), -middle, (s * (1 - s)).item()]
    lecture.expect("Z.sigmoid_derivative", found)
    assert slope.item() == pytest.approx(middle, rel=1e-15)
    assert slope.item() == pytest.approx(differences.item(), rel=1e-9)
    assert slope > 0 > -middle


def test_a_box_comes_after_its_inputs_and_once():
    x = variable("x", 2.0)
    a = product("a", x, x)
    y = total("y", a, a, x)
    order = in_order(y)
    assert [node.name for node in order] == ["x", "a", "y"]
    assert derivatives(y) == {y: 1.0, a: 2.0, x: 9.0}  # y = 2x² + x


def test_jacobians_of_layers_multiply():
    """∂y/∂x = ∂y/∂h · ∂h/∂x, for every layer of a net"""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(i, o, generator=generator, dtype=torch.float64) for i, o in ((3, 4), (4, 2))
    ]
    net = network(weights, Tanh(), Sigmoid())
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    whole = jacobian(net.model, x, net.params.views)
    assert whole.shape == (2, 3)
    chained, h = torch.eye(3, dtype=torch.float64), x
    for l, layer in enumerate(net.model.layers):
        params = net.params.views[str(l)]
        chained = jacobian(layer, h, params) @ chained
        h, _ = layer.forward(params, h)
    torch.testing.assert_close(whole, chained, rtol=1e-13, atol=0)
    torch.testing.assert_close(jacobian(Sequential(), x), torch.eye(3, dtype=torch.float64))
    for k in range(2):
        dy = torch.eye(2, dtype=torch.float64)[k : k + 1]
        differences = central_differences(lambda: net.predict(x.unsqueeze(0)), x, dy)
        torch.testing.assert_close(whole[k], differences, rtol=1e-8, atol=1e-9)
