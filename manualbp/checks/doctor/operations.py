"""A few operations as subjects, right as they stand: autograd is their backward pass.

They are what mutants are made of besides our layers, and stand for what others write by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments, Gradients

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A differentiable function of named arguments with their shapes; one output."""

    name: str
    function: Callable[[Arguments], Tensor]
    shapes: Mapping[str, Shape]
    indices: int = 0  # the argument "index" has whole numbers below this one

    def arguments(self, seed: int) -> dict[str, Tensor]:
        """Draw the arguments from N(0, 1) in float64."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randint(0, self.indices, shape, generator=generator)
            if name == "index"
            else torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }

    def gradients(self, arguments: Arguments, dys: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the gradients by autograd in the arguments' own dtype."""
        leaves = {
            n: t.detach().requires_grad_() if t.is_floating_point() else t
            for n, t in arguments.items()
        }
        names = [n for n, t in leaves.items() if t.requires_grad]
        with torch.enable_grad():
            y = self.function(leaves)
            found = torch.autograd.grad(
                y, [leaves[n] for n in names], dys[0], allow_unused=True, materialize_grads=True
            )
        return dict(zip(names, found, strict=True))

    def run(self, arguments: Arguments) -> OperationPass:
        """Make a forward pass."""
        with torch.no_grad():
            return OperationPass(self, arguments, (self.function(arguments),))


@dataclass(frozen=True)
class OperationPass:
    """A forward pass of an operation; it has saved its arguments."""

    operation: Operation
    arguments: Arguments
    outputs: tuple[Tensor]

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Return the right gradients."""
        return self.operation.gradients(self.arguments, dys)


def _layer_norm(a: Arguments) -> Tensor:
    x = a["x"]
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * a["weight"]


def _batch_norm(a: Arguments) -> Tensor:
    x = a["x"]
    centred = x - x.mean(0)
    return centred * (centred.square().mean(0) + 1e-5).rsqrt()


OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("sigmoid", lambda a: a["x"].sigmoid(), {"x": (4, 5)}),
        Operation("tanh", lambda a: a["x"].tanh(), {"x": (3, 6)}),
        Operation("gelu", lambda a: torch.nn.functional.gelu(a["x"]), {"x": (4, 5)}),
        Operation("relu", lambda a: a["x"].relu(), {"x": (5, 6)}),
        Operation("softplus", lambda a: torch.nn.functional.softplus(a["x"]), {"x": (7,)}),
        Operation("softmax", lambda a: a["x"].softmax(-1), {"x": (4, 5)}),
        Operation("log-softmax", lambda a: a["x"].log_softmax(-1), {"x": (4, 5)}),
        Operation("layer norm", _layer_norm, {"x": (4, 6), "weight": (6,)}),
        Operation("batch norm", _batch_norm, {"x": (6, 3)}),
        Operation(
            "linear",
            lambda a: a["x"] @ a["weight"].mT + a["bias"],
            {"x": (4, 5), "weight": (3, 5), "bias": (3,)},
        ),
        Operation(
            "square linear",
            lambda a: a["x"] @ a["weight"].mT + a["bias"],
            {"x": (5, 5), "weight": (5, 5), "bias": (5,)},
        ),
        Operation(
            "dense sigmoid",
            lambda a: (a["x"] @ a["weight"].mT).sigmoid(),
            {"x": (4, 5), "weight": (3, 5)},
        ),
        Operation(
            "dense relu",
            lambda a: (a["x"] @ a["weight"].mT).relu(),
            {"x": (4, 5), "weight": (3, 5)},
        ),
        Operation("matmul", lambda a: a["a"] @ a["b"], {"a": (4, 3), "b": (3, 4)}),
        Operation("bmm", lambda a: a["a"] @ a["b"], {"a": (2, 3, 3), "b": (2, 3, 3)}),
        Operation("product", lambda a: a["a"] * a["b"], {"a": (4, 5), "b": (4, 5)}),
        Operation(
            "channel bias", lambda a: a["x"] + a["bias"].view(-1, 1), {"x": (3, 4, 4), "bias": (4,)}
        ),
        Operation("scale", lambda a: a["x"] * a["weight"], {"x": (4, 5), "weight": (5,)}),
        Operation(
            "embedding",
            lambda a: a["weight"][a["index"]],
            {"index": (8,), "weight": (4, 3)},
            indices=4,
        ),
        Operation(
            "mean squared error",
            lambda a: (a["x"] - a["t"]).square().mean(),
            {"x": (4, 3), "t": (4, 3)},
        ),
        Operation(
            "attention scores", lambda a: a["q"] @ a["k"].mT / 4**0.5, {"q": (3, 4), "k": (5, 4)}
        ),
    )
}
