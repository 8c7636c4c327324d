"""Activations: the lectures' numbers, the slopes at the kinks, and how the functions relate."""

import pytest
import torch
from torch import nn
from torch.nn.functional import elu, leaky_relu

from manualbp.layers import (
    ELU,
    GELU,
    Layer,
    LeakyReLU,
    PiecewiseLinear,
    ReLU,
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
from manualbp.layers.base import SavedOutput

NO_PARAMETERS = Sequential().parameters().views
GRID = (-2, -1, -0.5, 0, 0.25, 0.5, 1, 2)

SIGMOID = [0.119202922, 0.2689414214, 0.3775406688, 0.5]
SIGMOID += [0.5621765009, 0.6224593312, 0.7310585786, 0.880797078]
SIGMOID_SLOPE = [0.1049935854, 0.1966119332, 0.2350037122, 0.25]
SIGMOID_SLOPE += [0.2461340827, 0.2350037122, 0.1966119332, 0.1049935854]
TANH_HALF = [-0.761594156, -0.4621171573, -0.2449186624, 0]
TANH_HALF += [0.1243530018, 0.2449186624, 0.4621171573, 0.761594156]
TANH_HALF_SLOPE = [0.2099871708, 0.3932238665, 0.4700074244, 0.5]
TANH_HALF_SLOPE += [0.4922681655, 0.4700074244, 0.3932238665, 0.2099871708]
TANH = [-0.9640275801, -0.761594156, -0.4621171573, 0]
TANH += [0.2449186624, 0.4621171573, 0.761594156, 0.9640275801]
TANH_SLOPE = [0.07065082485, 0.4199743416, 0.786447733, 1]
TANH_SLOPE += [0.9400148488, 0.786447733, 0.4199743416, 0.07065082485]
RELU = [0, 0, 0, 0, 0.25, 0.5, 1, 2]
LEAKY_RELU = [-0.2, -0.1, -0.05, 0, 0.25, 0.5, 1, 2]
PIECEWISE = [0, 0, 0, 0, 0.25, 0.5, 1, 1]

LECTURES = {  # the activation, its values on the grid and its slopes there
    "step": (Step(), [0, 0, 0, 1, 1, 1, 1, 1], [0] * 8),
    "sign": (Sign(), [-1, -1, -1, 1, 1, 1, 1, 1], [0] * 8),
    "piecewise linear, open": (PiecewiseLinear(0, 0), PIECEWISE, [0, 0, 0, 0, 1, 1, 0, 0]),
    "piecewise linear, closed": (PiecewiseLinear(1, 1), PIECEWISE, [0, 0, 0, 1, 1, 1, 1, 0]),
    "sigmoid": (Sigmoid(), SIGMOID, SIGMOID_SLOPE),
    "tanh(v/2)": (TanhHalf(), TANH_HALF, TANH_HALF_SLOPE),
    "tanh": (Tanh(), TANH, TANH_SLOPE),
    "ReLU, 0 at 0": (ReLU(0), RELU, [0, 0, 0, 0, 1, 1, 1, 1]),
    "ReLU, 1 at 0": (ReLU(1), RELU, [0, 0, 0, 1, 1, 1, 1, 1]),
    "leaky ReLU, 0.1 at 0": (LeakyReLU(0.1), LEAKY_RELU, [0.1] * 4 + [1] * 4),
    "leaky ReLU, 1 at 0": (LeakyReLU(0.1, 1), LEAKY_RELU, [0.1] * 3 + [1] * 5),
}


def value_and_slope(layer, x):
    """Return f(x) and f'(x); the upstream gradient -4 shows whether it is used."""
    y, saved = layer.forward(NO_PARAMETERS, x)
    dx = layer.backward(NO_PARAMETERS, saved, torch.full_like(y, -4.0), NO_PARAMETERS)
    return y, dx / -4.0


@pytest.mark.parametrize(("layer", "values", "slopes"), LECTURES.values(), ids=LECTURES)
def test_the_numbers_of_the_lectures(layer, values, slopes, device):
    y, slope = value_and_slope(layer, torch.tensor(GRID, dtype=torch.float64, device=device))
    assert y.tolist() == pytest.approx(values, rel=1e-9)  # printed with ten digits
    assert slope.tolist() == pytest.approx(slopes, rel=1e-9)


KINKS = [  # the layer, where its kink is, the slopes left and right of it, and the setting's name
    (ReLU, {}, 0.0, (0.0, 1.0), "slope_at_zero"),
    (LeakyReLU, {"negative_slope": 0.1}, 0.0, (0.1, 1.0), "slope_at_zero"),
    (LeakyReLU, {"negative_slope": 1.5}, 0.0, (1.5, 1.0), "slope_at_zero"),
    (ELU, {"alpha": 0.5}, 0.0, (0.5, 1.0), "slope_at_zero"),
    (ELU, {"alpha": 2.0}, 0.0, (2.0, 1.0), "slope_at_zero"),
    (PiecewiseLinear, {}, 0.0, (0.0, 1.0), "slope_at_zero"),
    (PiecewiseLinear, {}, 1.0, (1.0, 0.0), "slope_at_one"),
]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("cls", "settings", "kink", "sides", "setting"), KINKS)
def test_the_slope_at_a_kink_is_the_configured_one(
    cls, settings, kink, sides, setting, weight, device
):
    left, right = sides
    chosen = (1 - weight) * left + weight * right
    layer = cls(**settings, **{setting: chosen})
    x = torch.tensor([kink - 1e-3, kink, kink + 1e-3], dtype=torch.float64, device=device)
    _, slope = value_and_slope(layer, x)
    assert slope.tolist() == pytest.approx([left, chosen, right], rel=2e-3, abs=1e-15)
    assert slope[1].item() == pytest.approx(chosen, rel=1e-15)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (ReLU(), torch.relu),
        (LeakyReLU(), leaky_relu),
        (LeakyReLU(0.1), lambda x: leaky_relu(x, 0.1)),
        (ELU(), elu),
        (ELU(0.5), lambda x: elu(x, 0.5)),
        (PiecewiseLinear(), lambda x: torch.clamp(x, 0, 1)),
    ],
    ids=lambda value: str(value) if isinstance(value, Layer) else "",
)
def test_the_default_slope_at_a_kink_is_that_of_torch(layer, function, device):
    x = torch.tensor([0.0, -0.0, 1.0], dtype=torch.float64, device=device)
    _, slope = value_and_slope(layer, x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf).sum(), leaf)
    assert slope.tolist() == expected.tolist()


def test_the_slope_of_sigmoid_loses_no_digits_at_either_end() -> None:
    end = torch.logspace(-7, -0.5, 1000, dtype=torch.float64)
    y = torch.cat([end, 1 - end]).float()
    dy, saved = torch.ones_like(y), SavedOutput(y)
    slope = Sigmoid().backward(NO_PARAMETERS, saved, dy, NO_PARAMETERS)
    right = y.double() * (1 - y.double())
    assert ((slope.double() - right).abs() / right).max() < torch.finfo(torch.float32).eps


def test_tanh_of_half_is_a_sigmoid_from_minus_one_to_one():
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    y, slope = value_and_slope(TanhHalf(), x)
    p, p_slope = value_and_slope(Sigmoid(), x)
    torch.testing.assert_close(y, 2 * p - 1, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(slope, 2 * p_slope, rtol=1e-11, atol=1e-15)


def test_softplus_is_what_the_sigmoid_is_the_slope_of():
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    torch.testing.assert_close(value_and_slope(Softplus(), x)[1], value_and_slope(Sigmoid(), x)[0])


def test_softmax_of_two_is_a_sigmoid():
    x = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    y, _ = Softmax().forward(NO_PARAMETERS, x)
    torch.testing.assert_close(y, torch.stack([(x[0, 0] - x[0, 1]).sigmoid(), 1 - y[0, 0]])[None])


def test_softmax_does_not_depend_on_a_common_shift():
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    y, _ = Softmax().forward(NO_PARAMETERS, x)
    shifted, _ = Softmax().forward(NO_PARAMETERS, x + 1024)
    assert torch.equal(y, shifted)
    torch.testing.assert_close(y.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (Sigmoid(), (0, 0.5, 1)),
        (Tanh(), (-1, 0, 1)),
        (TanhHalf(), (-1, 0, 1)),
        (ELU(), (-1, 0, 1e30)),
        (GELU(), (0, 0, 1e30)),
        (GELU("tanh"), (0, 0, 1e30)),
        (SiLU(), (0, 0, 1e30)),
        (Softplus(), (0, 0.6931471805599453, 1e30)),
    ],
    ids=str,
)
def test_nothing_overflows_far_out(layer, values, device):
    """Values and slopes stay finite where the exponential of x has long overflown."""
    x = torch.tensor([-1e30, 0, 1e30], dtype=torch.float64, device=device)
    y, slope = value_and_slope(layer, x)
    assert y.tolist() == pytest.approx(values)
    assert slope.isfinite().all()
    assert slope[0] == 0


def test_each_activation_of_torch_has_its_settings_in_the_same_order():
    assert ELU(0.5).alpha == nn.ELU(0.5).alpha
    assert LeakyReLU(0.2).negative_slope == nn.LeakyReLU(0.2).negative_slope
    assert Softplus(2.0, 5.0).threshold == nn.Softplus(2.0, 5.0).threshold
    assert Softmax(1).dim == nn.Softmax(1).dim
