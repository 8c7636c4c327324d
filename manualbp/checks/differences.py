"""Derivatives from differences of values: the third opinion, which knows no chain rule.

`f` computes y from the numbers in `v`, a float64 tensor; for another one ValueError is raised.
Every number of v in turn is moved by a small step ε max(1, |v[j]|) and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

Index = tuple[int, ...]


def central_differences(
    f: Callable[[], Tensor], v: Tensor, dy: Tensor, eps: float = 1e-6
) -> Tensor:
    """Return dv[j] ≈ Σ_k dy[k] (y[k](v[j]+ε) - y[k](v[j]-ε)) / 2ε, in the shape of v.

    The error is about ε² y''' + 1e-16 y/ε, where y has no kink within the step.
    """
    dv = torch.zeros_like(v)
    for j, step in _steps(v, eps):
        # y is subtracted before it is summed, so that what does not depend on v[j] drops out.
        difference = _moved(f, v, j, step) - _moved(f, v, j, -step)
        dv[j] = (dy * difference).sum() / (2 * step)
    return dv


def one_sided_differences(
    f: Callable[[], Tensor], v: Tensor, dy: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return bounds for dv, in the shape of v, that hold at kinks too.

    dv[j] = Σ_k dy[k] s[k], where each s[k] may be any slope between the left and the right
    derivative of y[k] by v[j]; the bounds are the smallest and the largest such sum.
    """
    low, high = torch.zeros_like(v), torch.zeros_like(v)
    y = f().clone()  # which may be v itself
    for j, step in _steps(v, eps):
        left = dy * (y - _moved(f, v, j, -step)) / step
        right = dy * (_moved(f, v, j, step) - y) / step
        low[j] = torch.minimum(left, right).sum()
        high[j] = torch.maximum(left, right).sum()
    return low, high


def _steps(v: Tensor, eps: float) -> Iterator[tuple[Index, float]]:
    """Yield the index of every number of v with its step."""
    if v.dtype != torch.float64:
        raise ValueError(f"differences need a float64 tensor, got {v.dtype}")
    for j in product(*map(range, v.shape)):
        yield j, eps * max(1.0, v[j].abs().item())


def _moved(f: Callable[[], Tensor], v: Tensor, j: Index, step: float) -> Tensor:
    """Return y with v[j] + step in the place of v[j]."""
    kept = v[j].clone()
    v[j] += step
    y = f().clone()  # which may be v itself
    v[j] = kept
    return y
