"""What a case is: one configuration of a layer or loss, with inputs, that every check runs over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manualbp.layers import AnyLayer
from manualbp.losses import AnyLoss


@dataclass(frozen=True)
class Case:
    """A layer with the shape of its input.

    x is `scale` times N(0, 1), or `values`, repeated, where a case is about certain numbers.
    `kinks`: x holds points where the derivative jumps, so that central differences do not apply.
    `constant`: the output is constant almost everywhere, so that a gradient of zero is right.
    """

    name: str
    layer: AnyLayer
    shape: tuple[int, ...]
    scale: float = 1.0
    values: tuple[float, ...] = ()
    training: bool = True
    kinks: bool = False
    constant: bool = False

    def x(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the input, drawn in float64 and rounded to `dtype`."""
        if self.values:
            return _repeated(self.values, self.shape).to(dtype)
        x = self.scale * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return x.to(dtype)


TargetKind = Literal["numbers", "binary", "classes", "some ignored", "all ignored", "probabilities"]


@dataclass(frozen=True)
class LossCase:
    """A loss with the shape of the outputs y and the kind of its targets.

    y is `scale` times N(0, 1), or `values`, repeated, for a loss that takes no others.
    """

    name: str
    loss: AnyLoss
    shape: tuple[int, ...]
    target_kind: TargetKind = "numbers"
    scale: float = 1.0
    values: tuple[float, ...] = ()

    def y(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the outputs of an imagined network, drawn in float64 and rounded to `dtype`."""
        if self.values:
            return _repeated(self.values, self.shape).to(dtype)
        y = self.scale * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return y.to(dtype)

    def target(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return targets: int64 for classes, `dtype` otherwise."""
        axis = 1 if len(self.shape) > 1 else 0  # of the classes
        if self.target_kind == "numbers":
            return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        if self.target_kind == "binary":
            return torch.randint(0, 2, self.shape, generator=generator).to(dtype)
        if self.target_kind == "probabilities":
            t = torch.rand(self.shape, generator=generator, dtype=torch.float64) + 0.1
            return (t / t.sum(axis, keepdim=True)).to(dtype)
        examples = self.shape[:axis] + self.shape[axis + 1 :]
        target = torch.randint(0, self.shape[axis], examples, generator=generator)
        ignored = {"classes": 0, "some ignored": 3, "all ignored": 1}[self.target_kind]
        if ignored:
            target.view(-1)[::ignored] = -100
        return target


def _repeated(values: tuple[float, ...], shape: tuple[int, ...]) -> Tensor:
    """Return the values one after the other, from the first again when they are used up."""
    count = torch.Size(shape).numel()
    times = -(-count // len(values))
    return torch.tensor(values, dtype=torch.float64).repeat(times)[:count].reshape(shape)
