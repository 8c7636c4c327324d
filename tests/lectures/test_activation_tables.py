"""R06 to R12: values and derivatives of the activation functions on the grid, and their kinks."""

import pytest
import torch

from manualbp.explain.networks import float64, jacobian, values_and_slopes
from manualbp.layers import (
    EVALUATION,
    LeakyReLU,
    Maxout,
    PiecewiseLinear,
    ReLU,
    Sigmoid,
    Sign,
    Softmax,
    Step,
    Tanh,
    TanhHalf,
)
from manualbp.lectures import setting
from manualbp.models import ACTIVATIONS

V = float64(setting("ACT_GRID")["v"])
LEAKY = LeakyReLU(0.1)

VALUES = {
    "step_ge0": Step(),
    "sign_ge0": Sign(),
    "piecewise_linear": PiecewiseLinear(),
    "sigmoid": Sigmoid(),
    "tanh_half": TanhHalf(),
    "tanh": Tanh(),
    "relu": ReLU(),
    "leaky_relu_0.1": LEAKY,
}
DERIVATIVES = {
    "sigmoid": Sigmoid(),
    "tanh_half": TanhHalf(),
    "tanh": Tanh(),
    "relu_d0=0": ReLU(slope_at_zero=0.0),
    "relu_d0=1": ReLU(slope_at_zero=1.0),
    "leaky_relu_0.1_d0=1": LeakyReLU(0.1, slope_at_zero=1.0),
    "leaky_relu_0.1_d0=0.1": LEAKY,
    "piecewise_linear_open": PiecewiseLinear(slope_at_zero=0.0, slope_at_one=0.0),
    "piecewise_linear_closed": PiecewiseLinear(slope_at_zero=1.0, slope_at_one=1.0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.figures(f"act.{n}")) for n in VALUES]
)
def test_values(lecture, name):
    lecture.expect(f"act.{name}", values_and_slopes(VALUES[name], V)[0])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.figures(f"dact.{n}")) for n in DERIVATIVES]
)
def test_derivatives(lecture, name):
    lecture.expect(f"dact.{name}", values_and_slopes(DERIVATIVES[name], V)[1])


@pytest.mark.parametrize("unit", [Step(), Sign()], ids=str)
def test_step_and_sign_have_no_slope(unit):
    assert values_and_slopes(unit, V)[1].tolist() == [0.0] * 8


def test_the_defaults_at_the_kinks_are_torchs():
    assert ReLU() == ReLU(0.0)
    assert PiecewiseLinear() == PiecewiseLinear(1.0, 1.0)
    at_zero = float64([0.0])
    assert values_and_slopes(LEAKY, at_zero)[1] == 0.1


@pytest.mark.figures("K.given.leaky")
def test_leaky_relu_is_the_lectures(lecture):
    lecture.expect("K.given.leaky", ACTIVATIONS["leaky-relu"].negative_slope)
    y, _ = values_and_slopes(ACTIVATIONS["leaky-relu"], V)
    assert torch.equal(y, torch.maximum(0.1 * V, V))


def test_three_forms_of_tanh_half():
    y, _ = values_and_slopes(TanhHalf(), V)
    exponential = (1 - (-V).exp()) / (1 + (-V).exp())
    twice_sigmoid = 2 * values_and_slopes(Sigmoid(), V)[0] - 1
    torch.testing.assert_close(y, exponential, rtol=0, atol=1e-15)
    torch.testing.assert_close(y, twice_sigmoid, rtol=0, atol=1e-15)
    torch.testing.assert_close(y, values_and_slopes(Tanh(), V / 2)[0], rtol=0, atol=1e-15)
    one = float64([1.0])
    assert values_and_slopes(TanhHalf(), one)[0].item() == pytest.approx(0.462117157, abs=1e-9)
    assert values_and_slopes(Tanh(), one)[0].item() == pytest.approx(0.761594156, abs=1e-9)


def test_far_out_nothing_overflows():
    far = float64([-1000.0, 1000.0])
    for unit, ends in ((Sigmoid(), [0, 1]), (Tanh(), [-1, 1]), (TanhHalf(), [-1, 1])):
        y, slope = values_and_slopes(unit, far)
        assert y.tolist() == ends
        assert slope.tolist() == [0, 0]


@pytest.mark.figures("act.softmax", "act.softmax_big", "act.softmax_jac")
def test_softmax(lecture):
    three = float64([1.0, 2.0, 3.0])
    lecture.expect("act.softmax", values_and_slopes(Softmax(), three)[0])
    lecture.expect("act.softmax_big", values_and_slopes(Softmax(), float64([1e3, 1e3, 999]))[0])
    lecture.expect("act.softmax_jac", jacobian(Softmax(), three))


MAXOUT = setting("MAXOUT")


def maxout(w1, b1, w2, b2, **settings):
    """Return the layer max(w1ᵀx + b1, w2ᵀx + b2) with its parameters."""
    layer = Maxout(len(w1), 1, pieces=2, **settings)
    params = layer.parameters(dtype=torch.float64)
    params.load_state_dict({"weight": float64([[w1], [w2]]), "bias": float64([[b1], [b2]])})
    return layer, params


@pytest.mark.figures("act.maxout")
def test_maxout(lecture):
    # In the first row both pieces give -0.5, and the figure names piece 1.
    pieces = [MAXOUT[name] for name in ("w1", "b1", "w2", "b2")]
    layer, params = maxout(*pieces, ties="first")
    x = float64(MAXOUT["x"])
    y, saved = layer.forward(params.views, x)
    winners = saved.share.squeeze(-1).argmax(0) + 1
    lecture.expect("act.maxout", [y.squeeze(-1), winners])
    # the gradient goes to the winning piece only: dE/dw = δ x, dE/db = δ
    delta = float64([[1.0], [10.0], [100.0], [1000.0]])
    grads = params.zeros_like()
    layer.backward(params.views, saved, delta, grads.views)
    first = [0, 1, 3]
    assert torch.equal(grads.views.weight[0], delta[first].T @ x[first])
    assert torch.equal(grads.views.weight[1], delta[[2]].T @ x[[2]])
    assert grads.views.bias.view(-1).tolist() == [1011.0, 100.0]


@pytest.mark.parametrize(("ties", "shares"), [("split", [0.5, 0.5]), ("first", [1.0, 0.0])])
def test_maxout_at_a_tie(ties, shares):
    layer, params = maxout([1.0], 0.0, [-1.0], 0.0, ties=ties)
    _, saved = layer.forward(params.views, float64([[0.0]]))
    grads = params.zeros_like()
    layer.backward(params.views, saved, float64([[1.0]]), grads.views)
    assert grads.views.bias.view(-1).tolist() == shares


@pytest.mark.parametrize(
    ("second", "function"),
    [
        (-1.0, lambda v: v.abs()),
        (0.0, lambda v: values_and_slopes(ReLU(), v)[0]),
        (0.1, lambda v: values_and_slopes(LEAKY, v)[0]),
    ],
    ids=["absolute value", "ReLU", "leaky ReLU"],
)
def test_maxout_contains_other_units(second, function):
    """With (w, b) and a multiple of it, a (w, b): |v|, ReLU, leaky ReLU of v = wᵀx + b."""
    w, b = [0.7, -1.3], 0.2
    layer, params = maxout(w, b, [second * i for i in w], second * b)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, _ = layer.forward(params.views, x, mode=EVALUATION)
    v = x @ float64([w]).T + b
    torch.testing.assert_close(y, function(v), rtol=0, atol=1e-15)
