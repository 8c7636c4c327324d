"""What the doctor examines: anything with a forward pass and a backward pass of its own.

A layer of ours, a torch.autograd.Function, a module or function that uses one, a plain pair of
functions: each is wrapped as a Subject, and nothing behind this file asks which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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
class Diagnosis:
    """The cause of a failure, recognised from evidence."""

    cause: str  # a short name out of a fixed list: "sign", "constant factor", "transposed", ...
    argument: str  # whose gradient it is about, or "" for the pass as a whole
    words: str  # one sentence that the person who made the mistake understands
    evidence: str  # the numbers that show it
