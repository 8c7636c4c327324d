"""Moments instead of numbers through a network: backward, forward, and into its weights."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from manualbp.explain.examples import sigmoid_network
from manualbp.explain.networks import float64
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.layers import Linear, Sequential
from manualbp.lectures import figure, setting
from manualbp.moments import (
    Moments,
    backward_moments,
    evidence,
    linear_moments,
    relu_moments,
    sampled_moments,
    update_gaussian_weights,
)
from manualbp.parameters import Parameters

SAMPLES = 1_000_000


def network() -> tuple[Sequential, Parameters]:
    """Return the 2-2-2 network of the lectures, with sigmoids, before any update."""
    w = setting("MOMENTS")["weights"]
    order = ["w1", "w2", "w3", "w4", "b1", "b1", "w5", "w6", "w7", "w8", "b2", "b2"]
    net = sigmoid_network((2, 2, 2), [w[name] for name in order])
    return net.model, net.params


def random_target() -> Moments:
    """Return mean and covariance of the target; the mean is the target of the worked example."""
    return Moments(float64([0.01, 0.99]), float64([[0.04, 0.01], [0.01, 0.09]]))


def random_input() -> Moments:
    """Return mean and covariance of an input around that of the worked example."""
    return Moments(float64([0.05, 0.10]), float64([[0.01, 0], [0, 0.04]]))


@topic("moments", "Means and covariances sent backward", "R39")
def moments(page: Page) -> None:
    """Send the moments of a target backward, those of an input forward, and update Gaussians."""
    page.say(
        """Kandemir closes with a remark that has no equation: what goes backward through a network
        need not be a gradient, it may be a random variable, or its moments. Three readings of it
        can be computed."""
    )
    _backward(page)
    _forward(page)
    _weights(page)


def _backward(page: Page) -> None:
    page.heading("1. A random target: moments of every delta")
    page.say(
        """Suppose the target t is not known exactly, only its mean m and its covariance C. With
        E = ½ Σ_k (y_k - t_k)² the error signal y - t is linear in t. So is every step of the
        backward pass in what comes into it: the slopes and weights that it multiplies with do not
        depend on t. So each delta is A (y - t) with a matrix A that is known, and"""
    )
    page.code("mean of delta       = A (y - m)\ncovariance of delta = A C Aᵀ")
    page.say(
        """hold exactly, whatever the distribution of t is. To find A, no new derivation is needed:
        the backward pass of the rows of the identity gives it, a column for each row."""
    )
    model, params = network()
    x, target = float64([0.05, 0.1]), random_target()
    exact = backward_moments(model, params, x, target)
    page.given("x", x, "the input of the 2-2-2 example")
    page.given("m", target.mean, "mean of the target: the target of the example")
    page.given("C", target.covariance, "covariance of the target")
    output, hidden = exact.deltas[3], exact.deltas[1]
    for name, equation, found, reference in (
        ("output", "δ_k = y_k (1 - y_k) (y_k - t_k)", output, "K.moments.delta_out"),
        ("hidden", "δ_j = h_j (1 - h_j) Σ_k w_kj δ_k", hidden, "K.moments.delta_hid"),
    ):
        mean, covariance = figure(reference).value
        because = f"the figure {reference}"
        page.line(f"mean of the {name} delta", equation, found.mean, equals=mean, because=because)
        page.line(
            f"covariance of the {name} delta",
            "A C Aᵀ",
            found.covariance,
            equals=covariance,
            because=because,
        )
    page.say(
        """Both outputs pull at both hidden units in nearly the same proportion. So the two hidden
        deltas rise and fall together:"""
    )
    c = hidden.covariance
    page.line(
        "correlation",
        "C_12 / √(C_11 C_22)",
        float(c[0, 1] / (c[0, 0] * c[1, 1]).sqrt()),
        equals=_correlation(figure("K.moments.delta_hid").value[1]),
        because="the figure K.moments.delta_hid",
    )
    page.line(
        "mean of ∂E/∂w1..w8, the gradient at the mean target",
        "",
        _eight(exact.mean),
        figure="K.moments.grad_mean",
    )
    page.line(
        "sd of ∂E/∂w1..w8",
        "√(Σ_kl G_k C_kl G_l),  G_k the gradient for row k of the identity",
        _eight(exact.sd),
        figure="K.moments.grad_sd",
    )
    page.say(
        f"""The same once more with the random variable itself: {SAMPLES:,} Gaussian targets are
        drawn, and each is sent back through the batched backward pass. No formula for moments is
        used. Such a mean is good to its standard error, sd / √{SAMPLES:,}."""
    )
    generator = torch.Generator().manual_seed(page.seed)
    sampled = sampled_moments(model, params, x, target, SAMPLES, generator)
    errors = (sampled.mean.flat - exact.mean.flat).abs() / (exact.sd.flat / SAMPLES**0.5)
    off = float(errors[exact.sd.flat > 0].max())
    columns = [_eight(part) for part in (exact.mean, sampled.mean, exact.sd, sampled.sd)]
    page.table(
        ("∂E/∂", "mean", "sampled", "sd", "sampled"),
        [
            (f"w{i}", *(f"{float(n):.7f}" for n in row))
            for i, row in enumerate(torch.stack(columns, 1), 1)
        ],
    )
    page.claim(
        "All sampled means lie within 5 standard errors of the exact ones.",
        off < 5,
        f"at most {off:.2g} standard errors off",
    )
    ratio = float((_eight(sampled.sd) / _eight(exact.sd) - 1).abs().max())
    page.claim(
        "All sampled standard deviations are within 0.4 % of the exact ones.",
        ratio < 0.004,
        f"at most {100 * ratio:.2g} % off",
    )


def _forward(page: Page) -> None:
    page.heading("2. A random input: moments sent forward")
    page.say(
        """What has moments to send back must first have received some. A linear layer passes mean
        m and covariance S on exactly."""
    )
    model, params = network()
    layer = model.layers[0]
    assert isinstance(layer, Linear)
    net = linear_moments(layer, params.views["0"], random_input())
    mean, covariance = figure("K.moments.fwd_linear").value
    page.given("m", random_input().mean, "mean of the input")
    page.given("S", random_input().covariance, "covariance of the input")
    because = "the figure K.moments.fwd_linear"
    page.line("mean of net_h", "W m + b", net.mean, equals=mean, because=because)
    page.line("covariance of net_h", "W S Wᵀ", net.covariance, equals=covariance, because=because)
    page.say(
        """The inputs were independent of each other; the two sums are not, because each input goes
        into both. Behind a ReLU a Gaussian is no Gaussian any more, but its mean and variance have
        closed forms in the density φ and the distribution Φ of N(0, 1):"""
    )
    mu, variance = float64(0.3), float64(0.25)
    mean, variance_after = relu_moments(mu, variance)
    expected = figure("K.moments.relu").value
    because = "the figure K.moments.relu"
    page.given("μ, s²", [float(mu), float(variance)], "mean and variance before the ReLU")
    page.line(
        "mean",
        "μ Φ(μ/s) + s φ(μ/s)",
        mean,
        numbers="0.3 Φ(0.6) + 0.5 φ(0.6)",
        equals=expected[0],
        because=because,
    )
    page.line(
        "variance",
        "(μ² + s²) Φ(μ/s) + μ s φ(μ/s) - mean²",
        variance_after,
        numbers="0.34 Φ(0.6) + 0.15 φ(0.6) - mean²",
        equals=expected[1],
        because=because,
    )
    drawn = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(page.seed)).double()
    rectified = (mu + variance.sqrt() * drawn).clamp_min(0)
    off = float((rectified.mean() - mean).abs() / (variance_after / SAMPLES).sqrt())
    page.claim(
        f"The mean of {SAMPLES:,} draws, rectified, lies within 5 standard errors of it.",
        off < 5,
        f"{off:.2g} standard errors off",
    )


def _weights(page: Page) -> None:
    page.heading("3. Random weights: gradients that update moments")
    page.say(
        """Let each weight be a Gaussian with mean m_i and variance v_i. An example (x, y) has the
        probability density Z under them. For a linear neuron with noise in its output, the gradient
        of log Z by the means is sent back to the weights like any gradient, and so is that by the
        variances. Together they give the new moments:"""
    )
    given = setting("PBP_LINEAR")
    x, m, v = (float64(given[name]) for name in ("x", "prior_mean", "prior_var"))
    y, noise = float(given["y"]), float(given["noise_var"])
    page.given("x, y", [*given["x"], y], "the example")
    page.given("m", m, "means before")
    page.given("v", v, "variances before")
    page.given("noise", noise, "variance of the noise")
    z = evidence(x, y, m, v, noise)
    for name, equation, gradient, moved in (
        ("∂log Z/∂m", "(y - Σ_i m_i x_i) x_i / s²,  s² = Σ_i v_i x_i² + noise", z.dm, 0),
        ("∂log Z/∂v", "½ ((y - Σ_i m_i x_i)²/s⁴ - 1/s²) x_i²", z.dv, 1),
    ):
        page.line(
            name,
            equation,
            gradient,
            equals=_differences(x, y, m, v, noise, moved),
            because="central differences",
            tolerance=1e-8,
        )
    mean, variance = update_gaussian_weights(m, v, z.dm, z.dv)
    expected = figure("K.moments.pbp").value
    because = "the figure K.moments.pbp"
    page.line("new m", "m + v ∂log Z/∂m", mean, equals=expected[0], because=because)
    page.line(
        "new v",
        "v - v² [(∂log Z/∂m)² - 2 ∂log Z/∂v]",
        variance,
        equals=expected[1],
        because=because,
    )
    page.say(
        """For a linear neuron Bayes' rule can be worked out in full, with the matrix
        S = (diag(1/v) + x xᵀ / noise)⁻¹. For each weight by itself the update agrees with it; that
        the example also ties the weights to each other, S_12 ≠ 0, it leaves out:"""
    )
    posterior = torch.inverse(torch.diag(1 / v) + x.outer(x) / noise)
    page.line(
        "m of Bayes' rule",
        "S (m/v + y x / noise)",
        posterior @ (m / v + y * x / noise),
        equals=mean,
        because="the update",
    )
    page.line(
        "v of Bayes' rule",
        "the diagonal of S",
        posterior.diagonal(),
        equals=variance,
        because="the update",
    )


def _eight(params: Parameters) -> Tensor:
    """Return the entries of w1..w8, in the lecture's order."""
    return torch.cat([params.views[part].weight.flatten() for part in ("0", "2")])


def _correlation(covariance: list[list[float]]) -> float:
    return covariance[0][1] / sqrt(covariance[0][0] * covariance[1][1])


def _differences(
    x: Tensor, y: float, m: Tensor, v: Tensor, noise: float, moved: int, step: float = 1e-5
) -> list[float]:
    """Return (log Z(.. + step) - log Z(.. - step)) / (2 step) for each mean, or each variance."""
    slopes: list[float] = []
    for i in range(len(x)):
        log_z: list[float] = []
        for change in (-step, step):
            moments = m.clone(), v.clone()
            moments[moved][i] += change
            log_z.append(float(evidence(x, y, moments[0], moments[1], noise).log_z))
        slopes.append((log_z[1] - log_z[0]) / (2 * step))
    return slopes
