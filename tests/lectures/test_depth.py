"""R05, R24 and R40: 1, 2, 3 and 100 hidden layers, stored maps, and reused factors (KAND)."""

from math import cos, sin

import pytest
import torch

from manualbp.checks.audit import Recorder
from manualbp.explain.networks import float64, network
from manualbp.explain.reuse import rebuilt_for_each_layer, with_stored_factors
from manualbp.layers import EVALUATION, Linear, Sigmoid, Tanh
from manualbp.lectures import setting
from manualbp.optimizers import SGD

ONE = float64([[1.0]])
THREE = setting("KAND_3HIDDEN")
X, Y, ALPHA = float64([THREE["x"]]), float64([[THREE["y"]]]), THREE["alpha"]


def three_hidden():
    return network(THREE["W"], Sigmoid())


@pytest.mark.figures("K.net1")
def test_one_hidden_layer(lecture):
    given = setting("KAND_1HIDDEN")
    net = network([given["W1"], [[w] for w in given["w2"]]], Sigmoid())
    x, y = float64([given["x"]]), float64([[given["y"]]])
    f = net.stages(x, ONE)[0].y
    (h,) = net.activation_maps(x)
    lecture.expect("K.net1", [f[0], h[0], net.predict(x).item(), net.error(x, y)])


@pytest.mark.figures("K.net2")
def test_two_hidden_layers(lecture):
    lecture.expect("K.net2", network(setting("KAND_2HIDDEN")["W"], Sigmoid()).predict(X).item())


@pytest.mark.figures("K.h1", "K.h2", "K.h3", "K.yhat", "K.J")
def test_forward_pass_with_stored_activation_maps(lecture):
    net = three_hidden()
    for l, h in enumerate(net.activation_maps(X), 1):
        lecture.expect(f"K.h{l}", h[0])
    lecture.expect("K.yhat", net.predict(X).item())
    lecture.expect("K.J", net.error(X, Y))


@pytest.mark.figures("K.grad_yhat_*", "K.grad_J_*")
def test_gradients_of_the_output_and_of_the_error(lecture):
    net = three_hidden()
    both = zip(net.pull_back(X, ONE), net.gradients(X, Y), strict=True)
    for l, (of_yhat, of_J) in enumerate(both, 1):
        lecture.expect(f"K.grad_yhat_W{l}", of_yhat)
        lecture.expect(f"K.grad_J_W{l}", of_J)
        # ∇J = -(y - ŷ) ∇ŷ
        torch.testing.assert_close(of_J, (net.predict(X) - Y) * of_yhat, rtol=1e-13, atol=0)


@pytest.mark.figures("K.J_after1", "K.J_after1_literal", "K.J_traj", "K.J_traj_literal")
def test_gradient_descent_and_the_printed_sign(lecture):
    downhill = three_hidden().descent(X, Y, SGD(ALPHA)).errors(100)
    lecture.expect("K.J_after1", downhill[1])
    lecture.expect("K.J_traj", [downhill[n] for n in (0, 1, 2, 5, 10, 50, 100)])
    last = lecture["K.J_traj"].value[-1]
    assert downhill[100] == pytest.approx(last, rel=1e-11)  # 7e-8, beside 0.18 in the list
    # ∇J without its minus turns descent into ascent
    uphill = three_hidden().descent(X, Y, SGD(-ALPHA)).errors(10)
    lecture.expect("K.J_after1_literal", uphill[1])
    lecture.expect("K.J_traj_literal", [uphill[n] for n in (0, 1, 2, 5, 10)])
    assert downhill[1] < downhill[0] < uphill[1]


@pytest.mark.figures("K.trap.missing_factor")
def test_every_layer_has_its_derivative(lecture):
    """l.201 prints ∂f2/∂f2 where ∂h2/∂f2 = diag(σ'(f2)) belongs."""
    net = three_hidden()
    right = net.pull_back(X, ONE)[1][0]
    stages = net.stages(X, ONE)
    _, w2 = (s for s in stages[:3] if isinstance(s.layer, Linear))
    dyhat_dh2 = stages[3].dy  # not yet times σ'(f2)
    grads = w2.layer.parameters(dtype=torch.float64).zeros_like()
    w2.layer.backward_parameters(grads.views, w2.saved, dyhat_dh2, grads.views)
    wrong = grads.views.weight.T[0]
    lecture.expect("K.trap.missing_factor", [right, wrong])
    assert (right - wrong).abs().min() > 1e-3


@pytest.mark.figures("K.reuse_counts")
def test_each_factor_is_computed_once(lecture):
    net = three_hidden()
    stored, rebuilt = (find(net, X, ONE) for find in (with_stored_factors, rebuilt_for_each_layer))
    lecture.expect("K.reuse_counts", [stored.products, rebuilt.products])
    for a, b, c in zip(stored.gradients, rebuilt.gradients, net.pull_back(X, ONE), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("hidden", [0, 1, 2, 5, 20])
def test_l_products_not_half_of_l_squared(hidden):
    generator = torch.Generator().manual_seed(0)
    net = network([torch.randn(2, 2, generator=generator) for _ in range(hidden + 1)], Tanh())
    x, dy = float64([[0.5, -0.25]]), float64([[1.0, 1.0]])
    stored, rebuilt = (find(net, x, dy) for find in (with_stored_factors, rebuilt_for_each_layer))
    assert stored.products == hidden
    assert rebuilt.products == hidden * (hidden + 1) // 2
    for a, b in zip(stored.gradients, rebuilt.gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", [Sigmoid(), Tanh()], ids=["sigmoid", "tanh"])
def test_the_backward_pass_evaluates_no_activation_again(activation):
    net = network(THREE["W"], activation)
    name = type(activation).__name__.lower()
    recorder = Recorder()
    with recorder:
        net.model.forward(net.params.views, X, mode=EVALUATION)
    assert recorder.counts[name] == 3
    assert with_stored_factors(net, X, ONE).operations[name] == 0


def rotation(l):
    return [[cos(l), -sin(l)], [sin(l), cos(l)]]


@pytest.mark.figures("K.deep100")
def test_a_hundred_hidden_layers(lecture):
    deep = setting("DEEP100")
    matrices = [rotation(l) for l in range(1, deep["layers"] + 1)]
    net = network([*matrices, [[w] for w in deep["w_out"]]], Tanh())
    x = float64([deep["x"]])
    assert len(net.activation_maps(x)) == 100
    gradients = net.pull_back(x, ONE)
    lecture.expect("K.deep100", [net.predict(x).item(), gradients[0]])
    for dw, expected in zip(gradients, net.through_autograd(x, ONE), strict=True):
        torch.testing.assert_close(dw, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
