"""How far two results may lie apart, in one place.

All errors are relative to the largest number of a tensor: max |a - b| / max |b|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What one dtype allows."""

    floor: float
    """An error this small is rounding, whatever autograd's own error is."""
    factor: float
    """Otherwise the error against the float64 truth may be this many times the largest that
    autograd's tensors have in the same case. By hand every operation rounds its result, where a
    kernel of autograd rounds once; through twenty layers in bfloat16 that makes up to eight times
    the error."""


TOLERANCES = {
    torch.float64: Tolerance(floor=1e-10, factor=0.0),  # autograd in float64 is itself the truth
    torch.float32: Tolerance(floor=1e-5, factor=4.0),
    torch.bfloat16: Tolerance(floor=4e-2, factor=8.0),
}

UNDERFLOW = 0.1
"""Autograd's own error against the float64 truth from which on it is no matter of rounding."""

CENTRAL_DIFFERENCES = {"rtol": 1e-5, "atol": 1e-7, "eps": 1e-6}
"""For float64 against (f(x+ε) - f(x-ε)) / 2ε, whose own error is about ε² f''' + 1e-16 f/ε."""
