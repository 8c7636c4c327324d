"""The protocol that every layer obeys, leaf and composite alike.

Notation: `dX` is ∂E/∂X, the derivative of the error E by X, and has X's shape. `dy` comes in, `dx`
goes out. Derivatives of an output by an input are spelt `dy_dx`. Index letters: n example, t time,
c channel, h w image, i input, o output, k class or piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from manualbp.parameters import Parameters, Shapes, Views

SavedT = TypeVar("SavedT")


class Mode(NamedTuple):
    """What a pass depends on besides its inputs: training or not, and where chance comes from."""

    training: bool
    generator: torch.Generator | None = None
    """None is torch's default generator of the device."""


EVALUATION = Mode(training=False)


@dataclass(frozen=True)
class Layer(ABC, Generic[SavedT]):
    """Hyper-parameters, a forward pass and its backward pass. No tensors, no state.

    What a pass needs comes in as arguments; what the backward pass will need goes out as `saved`.
    So two forward passes may come before a backward pass, and a network may use a layer twice.
    """

    def shapes(self) -> Shapes:
        """Return the parameters by torch.nn's names with their shapes; sub-layers nest."""
        return {}

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        """Fill the parameters, in place, as torch.nn does."""

    @abstractmethod
    def forward(
        self, params: Views, x: Tensor, *, mode: Mode = EVALUATION
    ) -> tuple[Tensor, SavedT]:
        """Return y and what `backward` needs. Changes none of its arguments."""

    @abstractmethod
    def backward(self, params: Views, saved: SavedT, dy: Tensor, grads: Views) -> Tensor:
        """Add ∂E/∂parameter to each tensor of `grads` and return dx. Changes nothing else.

        `grads` may be of a wider type than all else: float32, where the pass is in bfloat16.
        """

    def backward_parameters(self, params: Views, saved: SavedT, dy: Tensor, grads: Views) -> None:
        """Do as `backward` where nobody asks for dx: the first layer, whose x is data.

        A layer overrides this where leaving dx out saves work.
        """
        self.backward(params, saved, dy, grads)

    def parameters(
        self,
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Parameters:
        """Return initialised parameters for this layer: draw on the CPU's generator, then move.

        The same seed so gives the same start on every device.
        """
        parameters = Parameters.zeros(self.shapes(), dtype=dtype)
        self.initialize(parameters.views, generator)
        return Parameters(parameters.shapes, parameters.flat.to(device))


AnyLayer = Layer[Any]


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Total += a b, for a matrix a and a matrix or vector b, without memory for the product.

    If `total` is of a wider type, the product is rounded once to the type of a and b, and added in
    the type of `total`: so gradients of a pass in bfloat16 are summed in float32.
    """
    if total.dtype != a.dtype:
        total.add_(a @ b)
    elif b.ndim == 1:
        total.addmv_(a, b)
    else:
        total.addmm_(a, b)


class SavedInput(NamedTuple):
    """For layers whose derivative is taken at the input."""

    x: Tensor


class SavedOutput(NamedTuple):
    """For layers whose derivative is a function of the output, which the next layer keeps too."""

    y: Tensor


class SavedSlope(NamedTuple):
    """For layers that are told their derivative, or the one tensor that tells it."""

    slope: Tensor
