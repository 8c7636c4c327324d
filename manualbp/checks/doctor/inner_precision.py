"""Does a forward pass compute in the precision of its inputs, or round on the way?

Many kernels work in float32 whatever they are given. Differences of such a pass in float64 are
noise, and no truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments

STEP = 2.0**-20
"""So short that the outputs are straight lines to 1e-9, so long that they move in float32."""

ROUNDED = 3e-9
"""A third difference larger than this, relative to the largest output, is no curvature."""


def rounds_on_the_way(run: Callable[[Arguments], Sequence[Tensor]], arguments: Arguments) -> bool:
    """Return whether outputs jump as those of float32 do, for float64 arguments.

    Six points along a random line, none of them the arguments themselves, where a kink may be. A
    jump in a single third difference may be a kink on the way: rounding shows in all of them.
    """
    generator = torch.Generator().manual_seed(0)
    lines = {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        for name, t in arguments.items()
        if t.is_floating_point()
    }
    points: list[Tensor] = []
    for n in range(1, 8):
        moved = {
            name: t + n * STEP * lines[name] if name in lines else t.clone()
            for name, t in arguments.items()
        }
        points.append(torch.cat([y.detach().double().flatten() for y in run(moved)]))
    values = torch.stack(points)
    largest = values.abs().max().item() if values.numel() else 0.0
    if not 0 < largest < float("inf"):
        return False
    jumps = values.diff(n=3, dim=0).abs().amax(1) / largest
    return bool((jumps > ROUNDED).all())
