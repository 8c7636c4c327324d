"""What the doctor examines: anything with a forward pass and a backward pass of its own.

A layer of ours, a torch.autograd.Function, a module or function that uses one, a plain pair of
functions: each is wrapped as a Subject, and nothing behind this file asks which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from manualbp.layers import AnyLayer, Mode
from manualbp.parameters import Shapes, Views

Arguments = Mapping[str, Tensor]
"""Inputs and parameters by name, in the order in which the subject takes them."""

Gradients = Mapping[str, Tensor | None]
"""What the subject's backward pass gives for each argument that has a gradient, as it gives it:
None, or a tensor of whatever shape, dtype and device."""


class Pass(Protocol):
    """One forward pass that waits for its backward pass, with all that it has saved."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """Return the outputs of the forward pass."""
        ...

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Return the gradients for these upstream gradients, one an output.

        It may be called again where the subject allows it; an error of the subject comes through.
        """
        ...


@runtime_checkable
class AccumulatingPass(Pass, Protocol):
    """A pass whose backward pass must add to the gradients that are there, as a layer's must."""

    def backward_onto(self, dys: Sequence[Tensor], start: Mapping[str, Tensor]) -> Gradients:
        """Return what stands where gradients are added up, if `start` stood there before.

        `start` has the arguments whose gradients are added up, and is left as it is.
        """
        ...


class Subject(Protocol):
    """A forward pass with a hand-written backward pass."""

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        ...

    def run(self, arguments: Arguments) -> Pass:
        """Make a forward pass on the very tensors that are given, not on copies."""
        ...


@dataclass(frozen=True)
class LayerSubject:
    """A hand-written layer: its arguments are "x" and its parameters, "weight", "0.weight", ..."""

    layer: AnyLayer
    training: bool = True
    seed: int = 0  # of the masks that the layer draws

    @property
    def name(self) -> str:
        """Return the layer's class."""
        return type(self.layer).__name__

    def run(self, arguments: Arguments) -> LayerPass:
        """Make a forward pass. Raises KeyError where x or a parameter is missing."""
        params = views_of(self.layer.shapes(), arguments)
        generator = torch.Generator(arguments["x"].device).manual_seed(self.seed)
        mode = Mode(self.training, generator)
        y, saved = self.layer.forward(params, arguments["x"], mode=mode)
        return LayerPass(self.layer, arguments, (y,), saved)


@dataclass(frozen=True)
class LayerPass:
    """A layer's forward pass with what it has saved."""

    layer: AnyLayer
    arguments: Arguments
    outputs: tuple[Tensor]
    saved: Any

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Return dx and the parameters' gradients, added up from zero."""
        parameters = [name for name, _ in views_of(self.layer.shapes(), self.arguments).named()]
        start = {name: torch.zeros_like(self.arguments[name]) for name in parameters}
        return self._backward(dys, start)

    def backward_onto(self, dys: Sequence[Tensor], start: Mapping[str, Tensor]) -> Gradients:
        """Return dx, and for each parameter `start` and its gradient together."""
        return self._backward(dys, {name: tensor.clone() for name, tensor in start.items()})

    def _backward(self, dys: Sequence[Tensor], sums: Mapping[str, Tensor]) -> Gradients:
        params = views_of(self.layer.shapes(), self.arguments)
        grads = views_of(self.layer.shapes(), sums)
        dx = self.layer.backward(params, self.saved, dys[0], grads)
        return {"x": dx, **sums}


def views_of(shapes: Shapes, tensors: Mapping[str, Tensor], prefix: str = "") -> Views:
    """Return the very tensors as a layer takes them."""
    own: dict[str, Tensor] = {}
    parts: dict[str, Views] = {}
    for name, shape in shapes.items():
        if isinstance(shape, Mapping):
            parts[name] = views_of(shape, tensors, f"{prefix}{name}.")
        else:
            own[name] = tensors[prefix + name]
    return Views(own, parts)


@dataclass(frozen=True)
class Diagnosis:
    """The cause of a failure, recognised from evidence."""

    cause: str  # a short name out of a fixed list: "sign", "constant factor", "transposed", ...
    argument: str  # whose gradient it is about, or "" for the pass as a whole
    words: str  # one sentence that the person who made the mistake understands
    evidence: str  # the numbers that show it
