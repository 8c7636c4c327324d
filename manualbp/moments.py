"""Means and covariances through a network: backward from a random target, and forward.

Kandemir remarks that other things than the gradient can be propagated backwards: random variables,
or their moments. Three readings of that are worked out here.

Backward: the target is random. The deltas are linear in it, so their moments are exact.
Forward: the input of a layer is random. Exact for Linear; for ReLU exact in each unit.
Weights: each weight is a Gaussian that an example narrows down, through the gradient of log Z.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from manualbp.layers import EVALUATION, Linear, Sequential
from manualbp.layers.base import SavedInput
from manualbp.losses import HalfSquaredError
from manualbp.parameters import Parameters, Views

LOSS = HalfSquaredError("sum")
"""E = ½ Σ_k (y[k] - t[k])²: the loss whose ∂E/∂y is linear in t."""


class Moments(NamedTuple):
    """Mean and covariance of a random vector."""

    mean: Float[Tensor, " k"]
    covariance: Float[Tensor, "k k"]

    @property
    def sd(self) -> Float[Tensor, " k"]:
        """Return the standard deviation of each component."""
        return self.covariance.diagonal().sqrt()


@dataclass(frozen=True)
class BackwardMoments:
    """Moments of everything that a backward pass computes, under a random target.

    `deltas[l]` are those of ∂E/∂h_l: h_0 is the input, h_l what layer l puts out. `mean` and `sd`
    are those of ∂E/∂w, under the names of the parameters.
    """

    deltas: tuple[Moments, ...]
    mean: Parameters
    sd: Parameters


def backward_moments(
    model: Sequential, params: Parameters, x: Float[Tensor, " i"], target: Moments
) -> BackwardMoments:
    """Return the moments of all deltas and gradients of one example, exactly.

    E = ½ Σ_k (y[k] - t[k])², so ∂E/∂y = y - t, and every layer's backward pass is linear in its dy:
    ∂E/∂h = A (y - t).  With mean m and covariance C of t:
    mean = A (y - m),  covariance = A C Aᵀ.

    The mean is the backward pass at the mean target. Row k of Aᵀ is the backward pass of row k of
    the identity. The distribution of t does not matter, only its two moments.
    Shapes: x (I,), t (K,).  Source: Kandemir, "backpropagation" (the closing remark).
    """
    y, saved = _forward(model, params, x.unsqueeze(0))
    _, saved_error = LOSS.forward(y, target.mean.unsqueeze(0))
    mean = params.zeros_like()
    means = _deltas(model, params, saved, LOSS.backward(saved_error), mean)
    rows: list[list[Tensor]] = []
    gradients: list[Tensor] = []
    for e_k in torch.eye(y.shape[1], dtype=y.dtype, device=y.device):
        grads = params.zeros_like()
        rows.append(_deltas(model, params, saved, e_k.unsqueeze(0), grads))
        gradients.append(grads.flat)
    C = target.covariance
    deltas: list[Moments] = []
    for l, mean_l in enumerate(means):
        A_T = torch.cat([row[l] for row in rows])
        deltas.append(Moments(mean_l.squeeze(0), A_T.T @ C @ A_T))
    G_T = torch.stack(gradients)
    variance = (G_T * (C @ G_T)).sum(0)  # Σ_kl G[p,k] C[k,l] G[p,l], the diagonal of G C Gᵀ
    # Rounding may leave a variance of zero a little below it.
    sd = Parameters(params.shapes, variance.clamp_min(0).sqrt())
    return BackwardMoments(tuple(deltas), mean, sd)


def sampled_moments(
    model: Sequential,
    params: Parameters,
    x: Float[Tensor, " i"],
    target: Moments,
    samples: int,
    generator: torch.Generator | None = None,
    *,
    at_once: int = 100_000,
) -> BackwardMoments:
    """Estimate what `backward_moments` computes: push `samples` Gaussian targets back, in batches.

    The gradients come added up over a batch. For their squares: a Linear layer with dy[n,o]² and
    x[n,i]² in the place of dy and x adds up Σ_n (dy[n,o] x[n,i])², the squared gradients of the
    single examples.
    Shapes as above; C positive definite, model of layers without parameters and Linear ones.
    """
    for layer in model.layers:
        if layer.shapes() and not isinstance(layer, Linear):
            raise ValueError(f"squares of single gradients are known for Linear, not for {layer}")
    L: Tensor = cast(Any, torch.linalg).cholesky(target.covariance)
    sums, squares = params.zeros_like(), params.zeros_like()
    first: list[Tensor] = []
    second: list[Tensor] = []
    for start in range(0, samples, at_once):
        n = min(at_once, samples - start)
        noise = torch.randn(n, len(L), generator=generator, dtype=L.dtype, device=L.device)
        t = target.mean + noise @ L.T
        y, saved = _forward(model, params, x.expand(n, -1))
        _, saved_error = LOSS.forward(y, t)
        deltas = _deltas(model, params, saved, LOSS.backward(saved_error), sums)
        for l, layer in enumerate(model.layers):
            if isinstance(layer, Linear):
                dy, views = deltas[l + 1], params.views[str(l)]
                squared = SavedInput(saved[l].x.square())
                layer.backward_parameters(views, squared, dy.square(), squares.views[str(l)])
        parts = [delta.sum(0) for delta in deltas], [delta.T @ delta for delta in deltas]
        first = [a + b for a, b in zip(first, parts[0], strict=True)] if first else parts[0]
        second = [a + b for a, b in zip(second, parts[1], strict=True)] if second else parts[1]
    means = [s / samples for s in first]
    moments = [
        Moments(mean, products / samples - mean.outer(mean))
        for mean, products in zip(means, second, strict=True)
    ]
    mean = sums.flat / samples
    variance = squares.flat / samples - mean.square()
    return BackwardMoments(
        tuple(moments),
        Parameters(params.shapes, mean),
        Parameters(params.shapes, variance.clamp_min(0).sqrt()),
    )


def linear_moments(layer: Linear, params: Views, x: Moments) -> Moments:
    """y[o] = Σ_i W[o,i] x[i] + b[o]:  mean W m + b,  covariance W S Wᵀ;  exact for any x."""
    y, _ = layer.forward(params, x.mean)
    W = params.weight
    return Moments(y, W @ x.covariance @ W.T)


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Y = max(a, 0) for a Gaussian a with mean μ and variance s²; return mean and variance of y

    E[y]  = μ Φ(μ/s) + s φ(μ/s)
    E[y²] = (μ² + s²) Φ(μ/s) + μ s φ(μ/s),  variance E[y²] - E[y]²

    with distribution Φ and density φ of N(0, 1). Each unit apart: shapes are kept, s > 0.
    """
    s = variance.sqrt()
    z = mean / s
    distribution = 0.5 * (1 + (z / sqrt(2)).erf())
    density = (-0.5 * z.square()).exp() / sqrt(2 * pi)
    first = mean * distribution + s * density
    second = (mean.square() + variance) * distribution + mean * s * density
    return first, second - first.square()


class Evidence(NamedTuple):
    """log Z of an example, and its gradient by the moments of the weights."""

    log_z: Tensor
    dm: Float[Tensor, " i"]
    dv: Float[Tensor, " i"]


def evidence(
    x: Float[Tensor, " i"],
    y: float,
    mean: Float[Tensor, " i"],
    variance: Float[Tensor, " i"],
    noise: float,
) -> Evidence:
    """Log Z = log N(y; f, s²),  f = Σ_i m[i] x[i],  s² = Σ_i v[i] x[i]² + noise

    Z is the probability density of the output y of a linear neuron whose weights are independent
    Gaussians. With e = y - f:
    ∂log Z/∂m[i] = e x[i] / s²,  ∂log Z/∂v[i] = ½ (e²/s⁴ - 1/s²) x[i]²
    """
    s2 = (variance * x.square()).sum() + noise
    e = y - (mean * x).sum()
    log_z = -0.5 * (e.square() / s2 + (2 * pi * s2).log())
    return Evidence(log_z, e * x / s2, 0.5 * (e.square() / s2 - 1) / s2 * x.square())


def update_gaussian_weights(
    mean: Float[Tensor, " i"], variance: Float[Tensor, " i"], dm: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor]:
    """M ← m + v ∂log Z/∂m,  v ← v - v² [(∂log Z/∂m)² - 2 ∂log Z/∂v]; return the new m and v

    They are mean and variance of each weight after the example, exactly, whatever Z is.
    Source: Minka 2001, eqs. 5.12 and 5.13; Hernández-Lobato & Adams 2015, eqs. 5 and 6.
    """
    return mean + variance * dm, variance - variance.square() * (dm.square() - 2 * dv)


def _forward(
    model: Sequential, params: Parameters, x: Float[Tensor, "n i"]
) -> tuple[Tensor, tuple[Any, ...]]:
    return model.forward(params.views, x, mode=EVALUATION)


def _deltas(
    model: Sequential, params: Parameters, saved: tuple[Any, ...], dy: Tensor, grads: Parameters
) -> list[Tensor]:
    """Do as `Sequential.backward`, and return all deltas on the way, ∂E/∂h_0, ..., ∂E/∂h_L."""
    deltas = [dy]
    for l in reversed(range(len(model.layers))):
        part = str(l)
        dy = model.layers[l].backward(params.views[part], saved[l], dy, grads.views[part])
        deltas.append(dy)
    return deltas[::-1]
