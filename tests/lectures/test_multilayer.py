"""R04, R05 and R25 (the layout): nets of several layers, linear and with Θ (PORR 6 and 7, KAND)."""

from itertools import pairwise

import pytest
import torch

from manualbp.errors import UsageError
from manualbp.explain.networks import float64, network, values_and_slopes
from manualbp.layers import EVALUATION, Linear, ReLU, Sequential, Sigmoid, Tanh
from manualbp.lectures import setting
from manualbp.optimizers import SGD

TWO = setting("PORR_2LAYER")
X, D = float64([TWO["x"]]), float64([TWO["d"]])
OMEGA_KJ, OMEGA_JI = TWO["Omega_kj"], TWO["Omega_ji"]
UNITS = {"linear": None, "sigmoid": Sigmoid(), "tanh": Tanh(), "relu": ReLU()}


def two_layers(unit):
    return network([OMEGA_KJ, OMEGA_JI], UNITS[unit], UNITS[unit])


def each_unit(*figures):
    """Run a test for every kind of unit, which then names the figures of its kind."""
    names = {unit: [f"P.2layer.{unit}.{figure}" for figure in figures] for unit in UNITS}
    params = [pytest.param(u, marks=pytest.mark.figures(*names[u])) for u in UNITS]
    return pytest.mark.parametrize("unit", params)


def sums_and_outputs(net, x):
    """Return v and y of each layer, from a net whose units may have no function of their own."""
    stages = net.stages(x, torch.ones_like(net.predict(x)))
    sums = [s.y for s in stages if isinstance(s.layer, Linear)]
    outputs = [*net.activation_maps(x), net.predict(x)]
    return sums, outputs


@each_unit("v_j", "y_j", "v_i", "y_i", "E")
def test_forward(lecture, unit):
    net = two_layers(unit)
    (v_j, v_i), (y_j, y_i) = sums_and_outputs(net, X)
    for name, value in (("v_j", v_j), ("y_j", y_j), ("v_i", v_i), ("y_i", y_i)):
        lecture.expect(f"P.2layer.{unit}.{name}", value[0])
    lecture.expect(f"P.2layer.{unit}.E", net.error(X, D))


@each_unit("dE_dOmega_ji", "dE_dOmega_kj", "dE_dOmega_kj_eq22_literal")
def test_backward(lecture, unit):
    net = two_layers(unit)
    kj, ji = net.gradients(X, D)
    lecture.expect(f"P.2layer.{unit}.dE_dOmega_ji", ji)
    lecture.expect(f"P.2layer.{unit}.dE_dOmega_kj", kj)
    # Eq. 22 as printed leaves Θ'(v_i) out: e_j = Σ_i e_i ω_ji, as if the output were linear
    without = network([OMEGA_KJ, OMEGA_JI], UNITS[unit])
    literal = without.pull_back(X, net.output_error(X, D))[0]
    lecture.expect(f"P.2layer.{unit}.dE_dOmega_kj_eq22_literal", literal)
    same = bool((literal - kj).abs().max() < 1e-12)
    assert same == (unit in ("linear", "relu"))  # Θ' = 1 here


@pytest.mark.figures("P.2layer.linear.e_j")
def test_internal_error_of_a_linear_net(lecture):
    """e_j = Σ_i e_i ω_ji with e = d - y, which is -∂E/∂y_j."""
    net = two_layers("linear")
    below, _ = net.stages(X, net.output_error(X, D))
    lecture.expect("P.2layer.linear.e_j", -below.dy[0])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layers", [1, 2, 3, 100])
def test_any_number_of_layers_against_autograd(unit, layers):
    generator = torch.Generator().manual_seed(layers)
    widths = [3, *[16] * (layers - 1), 2]
    gain = 2 if unit == "relu" else 1  # a ReLU unit lets half of the signals through
    matrices = [
        torch.randn(i, o, generator=generator, dtype=torch.float64) * (gain / i) ** 0.5
        for i, o in pairwise(widths)
    ]
    net = network(matrices, UNITS[unit], UNITS[unit])
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    dy = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    ours, autograd = net.pull_back(x, dy), net.through_autograd(x, dy)
    assert len(ours) == layers
    for dw, expected in zip(ours, autograd, strict=True):
        error, size = (dw - expected).abs().max(), expected.abs().max()
        assert size > 0
        assert error <= 1e-12 * size


def test_stages_are_what_the_model_does_itself():
    net = network([OMEGA_KJ, OMEGA_JI], Tanh(), Sigmoid())
    dy = net.output_error(X, D)
    stages = net.stages(X, dy)
    assert [s.layer for s in stages] == list(net.model.layers)
    y, saved = net.model.forward(net.params.views, X, mode=EVALUATION)
    assert torch.equal(stages[-1].y, y)
    dx = net.model.backward(net.params.views, saved, dy, net.params.zeros_like().views)
    assert torch.equal(stages[0].dx, dx)
    for below, above in pairwise(stages):
        assert below.y is above.x
        assert below.dy is above.dx


def test_layout():
    """R25: rows of a lecture's matrix are sources; Linear keeps torch's weight, the transpose."""
    w = float64([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    net = network([w])
    assert net.model == Sequential(Linear(2, 3, bias=False))
    assert torch.equal(net.params.named()["0.weight"], w.T)
    assert torch.equal(net.matrices[0], w)
    x = float64([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert torch.equal(net.predict(x), x @ w)
    dy = float64([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert torch.equal(net.pull_back(x, dy)[0], x.T @ dy)  # ∂E/∂W = Hᵀ D
    (stage,) = net.stages(x, dy)
    assert torch.equal(stage.dx, dy @ w.T)  # D Wᵀ


def test_a_batch_gives_the_sum_of_its_examples():
    net = network([OMEGA_KJ, OMEGA_JI], Sigmoid(), Sigmoid())
    x, d = float64([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]]), float64([[1.0, 1], [0, 1], [0.5, 0]])
    singles = [net.gradients(x[n : n + 1], d[n : n + 1]) for n in range(3)]
    for whole, *parts in zip(net.gradients(x, d), *singles, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=0, atol=1e-15)


def test_dy_in_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"dy has shape \(2,\), expected \(1, 2\)"):
        two_layers("tanh").pull_back(X, float64([1.0, 1.0]))


@pytest.mark.figures("P.collapse")
def test_a_linear_net_collapses_to_one_matrix(lecture):
    net = two_layers("linear")
    single = net.collapsed()
    lecture.expect("P.collapse", single.matrices[0])
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(net.predict(x), single.predict(x), rtol=0, atol=1e-13)
    other = network([OMEGA_KJ, OMEGA_JI], Tanh())
    assert (other.predict(x) - single.predict(x)).abs().max() > 0.1


def test_a_net_with_other_units_does_not_collapse():
    with pytest.raises(UsageError, match="Tanh units does not collapse: expected linear layers"):
        two_layers("tanh").collapsed()


@pytest.mark.figures("P.collapse_learning")
def test_the_functions_coincide_but_the_learning_does_not(lecture):
    deep = two_layers("linear")
    single = deep.collapsed()
    for net in (deep, single):
        net.descent(X, D, SGD(TWO["mu"])).errors(1)
    both = [single.matrices[0].tolist(), deep.collapsed().matrices[0].tolist()]
    lecture.expect("P.collapse_learning", both)


@pytest.mark.figures("P.relu0")
def test_the_choice_at_the_kink_decides_whether_a_relu_unit_learns(lecture):
    x = d = float64([[1.0]])
    nets = [network([[[0.0]]], output=ReLU(slope)) for slope in (0.0, 1.0)]
    lecture.expect("P.relu0", [net.gradients(x, d)[0].item() for net in nets])
    for net in nets:
        net.descent(x, d, SGD(TWO["mu"])).run(1)
    assert [net.matrices[0].item() for net in nets] == [0.0, TWO["mu"]]


@pytest.mark.figures("P.theta_prime_arg", "P.relu_y_arg")
def test_theta_prime_is_taken_at_v_not_at_y(lecture):
    """Eqs. 21 and 22 print Θ'(y); eq. 20 has it right."""

    def at(layer, v):
        y, slope = values_and_slopes(layer, float64([v]))
        return y.item(), slope.item()

    y, right = at(Sigmoid(), 1.75)
    wrong = at(Sigmoid(), y)[1]
    lecture.expect("P.theta_prime_arg", [right, wrong, y * (1 - y)])
    assert right == pytest.approx(y * (1 - y), rel=1e-12)
    assert wrong != pytest.approx(right, rel=0.1)

    inactive, slope = at(ReLU(0.0), -2.0)
    literal = [at(ReLU(at_zero), inactive)[1] for at_zero in (0.0, 1.0)]
    lecture.expect("P.relu_y_arg", [slope, *literal])
    assert at(ReLU(1.0), -2.0)[1] == 0.0  # at v the unit stays closed with either choice
