"""Moments through networks of other shapes, against autograd, exact distributions and sampling."""

from math import sqrt

import pytest
import torch

from manualbp.layers import Linear, Maxout, ReLU, Sequential, Sigmoid, Tanh
from manualbp.moments import (
    Moments,
    backward_moments,
    evidence,
    linear_moments,
    relu_moments,
    sampled_moments,
    update_gaussian_weights,
)

GENERATOR = torch.Generator().manual_seed(0)
MODEL = Sequential(Linear(4, 5), Tanh(), Linear(5, 4), ReLU(), Linear(4, 3), Sigmoid())
PARAMS = MODEL.parameters(GENERATOR, dtype=torch.float64)
X = torch.randn(4, generator=GENERATOR, dtype=torch.float64)
ROOT = torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64)
TARGET = Moments(torch.randn(3, generator=GENERATOR, dtype=torch.float64), ROOT @ ROOT.T)


FUNCTIONS = {Tanh: torch.tanh, ReLU: torch.relu, Sigmoid: torch.sigmoid}


def deltas_and_gradients(target):
    """Return ∂E/∂h_l for all l and ∂E/∂w in one vector, found by autograd."""
    flat = {name: w.clone().requires_grad_() for name, w in PARAMS.named().items()}
    h = [X.unsqueeze(0).requires_grad_()]
    for l, layer in enumerate(MODEL.layers):
        if isinstance(layer, Linear):
            h.append(h[-1] @ flat[f"{l}.weight"].T + flat[f"{l}.bias"])
        else:
            h.append(
                {Tanh: torch.tanh, ReLU: torch.relu, Sigmoid: torch.sigmoid}[type(layer)](h[-1])
            )
    error = 0.5 * ((h[-1] - target) ** 2).sum()
    grads = torch.autograd.grad(error, [*h, *flat.values()])
    return [g.squeeze(0) for g in grads[: len(h)]], torch.cat(
        [g.flatten() for g in grads[len(h) :]]
    )


def assert_close(ours, expected, rel=1e-12):
    assert float((ours - expected).abs().max()) <= rel * float(expected.abs().max())


def test_moments_are_those_of_a_distribution_with_six_values():
    # m ± √3 l_k, with the columns of C = L Lᵀ, has mean m and covariance C exactly.
    L = torch.linalg.cholesky(TARGET.covariance)
    targets = [TARGET.mean + sign * sqrt(3) * column for column in L.T for sign in (-1, 1)]
    passes = [deltas_and_gradients(target) for target in targets]
    exact = backward_moments(MODEL, PARAMS, X, TARGET)
    assert len(exact.deltas) == len(MODEL.layers) + 1
    for l, found in enumerate(exact.deltas):
        values = torch.stack([deltas[l] for deltas, _ in passes])
        assert_close(found.mean, values.mean(0))
        assert_close(found.covariance, values.T.cov(correction=0))
        assert_close(found.sd, values.std(0, correction=0))
    gradients = torch.stack([gradient for _, gradient in passes])
    for found, expected in (
        (exact.mean, gradients.mean(0)),
        (exact.sd, gradients.std(0, correction=0)),
    ):
        assert_close(torch.cat([w.flatten() for w in found.named().values()]), expected)


def test_a_certain_target_gives_the_gradient_and_no_spread():
    certain = Moments(TARGET.mean, torch.zeros(3, 3, dtype=torch.float64))
    exact = backward_moments(MODEL, PARAMS, X, certain)
    _, gradient = deltas_and_gradients(TARGET.mean)
    assert_close(torch.cat([w.flatten() for w in exact.mean.named().values()]), gradient)
    assert not exact.sd.flat.any()


def test_sampling_comes_close_and_closer():
    exact = backward_moments(MODEL, PARAMS, X, TARGET)
    off = []
    for samples in (500, 50_000):
        generator = torch.Generator().manual_seed(1)
        sampled = sampled_moments(
            MODEL, PARAMS, X, TARGET, samples, generator, at_once=samples // 2 - 1
        )
        used = exact.sd.flat > 0
        errors = (sampled.mean.flat - exact.mean.flat)[used] / exact.sd.flat[used]
        assert float(errors.abs().max()) < 5 / samples**0.5
        off.append(float((sampled.sd.flat[used] / exact.sd.flat[used] - 1).abs().max()))
        for ours, true in zip(sampled.deltas, exact.deltas, strict=True):
            assert_close(ours.covariance, true.covariance, rel=10 / samples**0.5)
    assert off[1] < off[0] / 2


def test_sampling_refuses_what_it_has_no_squares_for():
    model = Sequential(Maxout(4, 3))
    with pytest.raises(ValueError, match="known for Linear, not for Maxout"):
        sampled_moments(model, model.parameters(), X, TARGET, 10)


def test_linear_moments_by_sampling():
    layer = Linear(3, 2)
    params = layer.parameters(torch.Generator().manual_seed(2), dtype=torch.float64)
    points = torch.randn(7, 3, generator=GENERATOR, dtype=torch.float64)
    y, _ = layer.forward(params.views, points)
    out = linear_moments(layer, params.views, Moments(points.mean(0), points.T.cov(correction=0)))
    assert_close(out.mean, y.mean(0))
    assert_close(out.covariance, y.T.cov(correction=0))


def test_relu_moments_by_integration():
    mean = torch.tensor([0.3, -1.0, 0.0, 4.0], dtype=torch.float64)
    variance = torch.tensor([0.25, 1.0, 2.0, 0.01], dtype=torch.float64)
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-0.5 * z * z).exp()
    density = density / density.sum()
    y = (mean.unsqueeze(1) + variance.sqrt().unsqueeze(1) * z).clamp_min(0)
    first, second = y @ density, (y * y) @ density
    found = relu_moments(mean, variance)
    assert torch.allclose(found[0], first, rtol=1e-8, atol=0)
    assert torch.allclose(found[1], second - first * first, rtol=1e-8, atol=0)


def test_evidence_against_autograd_and_bayes_in_sequence():
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3]], dtype=torch.float64)
    m, v = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    for x_n, y in zip(x, (3.0, -1.0, 0.5), strict=True):
        z = evidence(x_n, y, m, v, 0.7)
        inputs = m.clone().requires_grad_(), v.clone().requires_grad_()
        log_z = torch.distributions.Normal(
            inputs[0] @ x_n, (inputs[1] @ x_n.square() + 0.7).sqrt()
        ).log_prob(torch.tensor(y, dtype=torch.float64))
        dm, dv = torch.autograd.grad(log_z, inputs)
        assert_close(z.log_z, log_z.detach())
        assert_close(z.dm, dm)
        assert_close(z.dv, dv)
        posterior = torch.linalg.inv(torch.diag(1 / v) + x_n.outer(x_n) / 0.7)
        expected = posterior @ (m / v + y * x_n / 0.7)
        m, v = update_gaussian_weights(m, v, z.dm, z.dv)
        assert_close(m, expected)
        assert_close(v, posterior.diagonal())
